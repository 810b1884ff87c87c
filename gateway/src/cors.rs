//! Lets pages of other origins ask, where the operator names those origins: browsers ask for leave first.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

const ANY: &str = "*";
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
/// What a page may read beside the body.
const SHOWN: HeaderValue = HeaderValue::from_static("x-request-id, retry-after");
/// For how many seconds a browser need not ask again.
const REMEMBERED: HeaderValue = HeaderValue::from_static("600");

/// The origins whose pages may ask; none unless some are named.
#[derive(Clone, Debug)]
pub(crate) struct Origins(Arc<[String]>);

impl Origins {
    pub(crate) fn new(named: &[String]) -> Self {
        Self(named.into())
    }

    /// The origin that a request comes from, if its pages may ask.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let named = |name: &String| name == ANY || name.as_bytes() == origin.as_bytes();
        self.0.iter().any(named).then(|| origin.clone())
    }
}

/// Whether a configured origin is one: `*`, or a scheme and a host without a path.
pub(crate) fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let plain = |host: &str| {
        !host.is_empty() && !host.contains('/') && host.bytes().all(|b| b.is_ascii_graphic())
    };
    text == ANY || host.is_some_and(plain)
}

/// Answers a browser that asks for leave, and says on other answers that the page may read them. Keys are asked
/// for as ever: a browser sends none when it asks for leave.
pub(crate) async fn share(
    State(origins): State<Origins>,
    request: Request,
    next: Next,
) -> Response {
    let Some(origin) = origins.allowed(request.headers()) else {
        return next.run(request).await;
    };
    let asks = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if request.method() == Method::OPTIONS && asks {
        leave(request.headers())
    } else {
        let mut response = next.run(request).await;
        response.headers_mut().insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, SHOWN);
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    response
}

/// Leave for any headers: `*` would leave out `authorization`.
fn leave(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBERED);
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::is_origin;

    #[test]
    fn an_origin_has_a_scheme_and_no_path() {
        for good in ["*", "http://localhost:3000", "https://chat.example.org"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in
            ["", "localhost", "https://", "https://a/", "https://a/b", "ftp://a", "https://a b"]
        {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}

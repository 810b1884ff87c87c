//! Keys of people with browsers: a browser asks for a name and a password, and the password is the key.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use base64::{Engine, prelude::BASE64_STANDARD};

/// What makes a browser ask.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"amoe\", charset=\"UTF-8\"");

/// Shows the password of `Basic` credentials (RFC 7617) as the key that it is.
pub(super) fn show_key(request: &mut Request) {
    if let Some(bearer) = request.headers().get(header::AUTHORIZATION).and_then(bearer) {
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
    }
}

/// Has browsers ask where a key is wanted.
pub(super) fn challenge(response: &mut Response) {
    if response.status() == StatusCode::UNAUTHORIZED {
        let headers: &mut HeaderMap = response.headers_mut();
        headers.append(header::WWW_AUTHENTICATE, CHALLENGE);
    }
}

fn bearer(basic: &HeaderValue) -> Option<HeaderValue> {
    let (scheme, credentials) = basic.as_bytes().split_at_checked(b"Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let credentials = BASE64_STANDARD.decode(credentials.trim_ascii()).ok()?;
    let colon = credentials.iter().position(|&byte| byte == b':')?;
    let mut bearer =
        HeaderValue::from_bytes(&[b"Bearer ", &credentials[colon + 1..]].concat()).ok()?;
    bearer.set_sensitive(true);
    Some(bearer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_the_key_and_anything_else_is_left_alone() {
        let table = [
            ("Basic YWxpY2U6c2VjcmV0", Some("Bearer secret")),
            ("basic OmE6Yg==", Some("Bearer a:b")),
            ("Basic YWxpY2U=", None),
            ("Basic not base64", None),
            ("Basic OgoK", None),
            ("Bearer c2VjcmV0", None),
            ("Basic", None),
            ("", None),
        ];
        for (shown, expected) in table {
            let bearer = bearer(&HeaderValue::from_static(shown));
            let bearer = bearer.as_ref().map(|bearer| bearer.to_str().unwrap());
            assert_eq!(bearer, expected, "{shown}");
        }
    }
}

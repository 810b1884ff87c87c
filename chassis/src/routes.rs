//! The pages of an HTTP door, each with who may ask for it, and the guard that holds everybody to that.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use serde::Serialize;
use trust::{Denied, KEY_HEADER, Keys, Scope};

/// Who may ask, where keys are known at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everybody: probes have no key.
    Everybody,
    /// Whoever has a key.
    KeyHolders,
    /// Whoever has a key with this scope.
    Scope(Scope),
}

/// Routes that are not served yet. There is no route without an audience.
#[derive(Clone, Debug, Default)]
pub struct Routes(Vec<(&'static str, Audience, MethodRouter)>);

/// Holds requests to the audience of their route.
#[derive(Clone, Debug)]
pub struct Guard {
    keys: Option<Keys>,
    refuse: fn(&Denied, &Request) -> Response,
}

/// The name of the key that a request was let in by, on the request and on its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName(pub Arc<str>);

/// A route as `/routes` shows it.
#[derive(Clone, Serialize)]
struct Row {
    path: &'static str,
    audience: &'static str,
}

// === impl Audience ===

impl Audience {
    fn name(self) -> &'static str {
        match self {
            Self::Everybody => "everybody",
            Self::KeyHolders => "key holders",
            Self::Scope(scope) => scope.name(),
        }
    }
}

// === impl Routes ===

impl Routes {
    /// Adds a route, in axum's notation.
    #[must_use]
    pub fn add(mut self, path: &'static str, audience: Audience, methods: MethodRouter) -> Self {
        self.0.push((path, audience, methods));
        self
    }

    /// These and `others`.
    #[must_use]
    pub fn merge(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// A router that asks `guard` before each route, and shows all of them at `/routes`.
    ///
    /// # Panics
    /// When a path was added twice: two components want the same page.
    pub fn router(self, guard: &Guard) -> Router {
        let own = ("/routes", Audience::Scope(Scope::Metrics));
        let listed = self.0.iter().map(|&(path, audience, _)| (path, audience)).chain([own]);
        let rows: Vec<_> =
            listed.map(|(path, audience)| Row { path, audience: audience.name() }).collect();
        let routes = self.add(own.0, own.1, get(async move || Json(rows)));
        routes.0.into_iter().fold(Router::new(), |router, (path, audience, methods)| {
            let state = (guard.clone(), audience);
            router.route(path, methods.layer(from_fn_with_state(state, check)))
        })
    }
}

async fn check(
    State((guard, audience)): State<(Guard, Audience)>,
    mut request: Request,
    next: Next,
) -> Response {
    match guard.check(audience, &request) {
        Ok(None) => next.run(request).await,
        Ok(Some(name)) => {
            request.extensions_mut().insert(name.clone());
            let mut response = next.run(request).await;
            response.extensions_mut().insert(name);
            response
        }
        Err(denied) => (guard.refuse)(&denied, &request),
    }
}

// === impl Guard ===

impl Guard {
    /// A guard that knows `keys`, or lets everybody in without any; `refuse` says no in the words of
    /// the door.
    #[must_use]
    pub fn new(keys: Option<Keys>, refuse: fn(&Denied, &Request) -> Response) -> Self {
        Self { keys, refuse }
    }

    /// Whether the request may go on, and by which key.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, audience: Audience, request: &Request) -> Result<Option<KeyName>, Denied> {
        let Some(keys) = &self.keys else { return Ok(None) };
        let scope = match audience {
            Audience::Everybody => return Ok(None),
            Audience::KeyHolders => None,
            Audience::Scope(scope) => Some(scope),
        };
        let shown = request.headers().get(KEY_HEADER).map(HeaderValue::as_bytes);
        keys.check(shown, scope).map(|name| Some(KeyName(name)))
    }
}

impl Default for Guard {
    /// Lets everybody in.
    fn default() -> Self {
        Self::new(None, refuse)
    }
}

/// A refusal as plain text.
pub(crate) fn refuse(denied: &Denied, _request: &Request) -> Response {
    let sentence = format!("{denied}\n");
    match denied {
        Denied::Unknown(_) => {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], sentence)
                .into_response()
        }
        Denied::Forbidden(_) => (StatusCode::FORBIDDEN, sentence).into_response(),
    }
}

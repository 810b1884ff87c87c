//! A service that looks at who calls before it answers.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::Either;
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
    server::NamedService,
};
use tower::Service;
use trust::{Callers, Denied, KEY_HEADER, Peer};

/// The service and its callers. The look is once per call, not per message.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    service: S,
    callers: Arc<Callers>,
}

// === impl Guarded ===

impl<S> Guarded<S> {
    pub(crate) fn new(service: S, callers: Callers) -> Self {
        Self { service, callers: Arc::new(callers) }
    }

    fn check(&self, request: &Request<Body>) -> Result<(), Denied> {
        // Who came by a way that says nothing about callers is nobody.
        let nobody = Peer::Certified(Vec::new());
        let peer = request.extensions().get::<Peer>().unwrap_or(&nobody);
        let authorization = request.headers().get(KEY_HEADER).map(|value| value.as_bytes());
        self.callers.check(peer, authorization)
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let status = match self.check(&request) {
            Ok(()) => return Either::Left(self.service.call(request)),
            Err(Denied::Unknown(why)) => Status::unauthenticated(why),
            Err(Denied::Forbidden(why)) => Status::permission_denied(why),
        };
        Either::Right(ready(Ok(status.into_http())))
    }
}

//! The gRPC API on the same port.

use futures::StreamExt;
use proto::v1::{
    self as wire, FinishReason, GenerateRequest, SamplingParams, generate_request::Prompt,
    inference_client::InferenceClient,
};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{
    v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    },
    v1alpha,
};

use crate::{
    gateway::{Started, keyed, start, start_trusting, start_with},
    node::{Act, ids, saying},
};

pub(crate) async fn channel(gateway: &Started) -> Channel {
    let uri = format!("http://{}", gateway.authority());
    Channel::from_shared(uri).unwrap().connect().await.unwrap()
}

pub(crate) fn request(prompt: Prompt) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(prompt),
        sampling: Some(SamplingParams { max_tokens: Some(20), ..SamplingParams::default() }),
        ..GenerateRequest::default()
    }
}

pub(crate) fn text(text: &str) -> Prompt {
    Prompt::Text(text.to_string())
}

#[tokio::test]
async fn generate_answers_once() {
    let gateway = start(saying(" said unto him")).await;
    let mut client = InferenceClient::new(channel(&gateway).await);
    let answer = client.generate(request(text("And God"))).await.unwrap().into_inner();
    assert_eq!(answer.text, " said unto him");
    assert_eq!(answer.model, "demo");
    assert_eq!(answer.finish_reason(), FinishReason::Stop);
    assert_eq!(answer.token_ids[..3], ids(" said unto him")[..3]);
    assert_eq!(answer.usage.unwrap().prompt_tokens as usize, ids("And God").len());
    assert!(answer.logprobs.is_empty());
    assert_eq!(answer.request_id.len(), 32);
}

#[tokio::test]
async fn generate_stream_brings_pieces_then_the_usage() {
    let gateway = start(saying("né € end")).await;
    let mut client = InferenceClient::new(channel(&gateway).await);
    let mut asked = request(Prompt::Tokens(wire::TokenIds { ids: ids("And God") }));
    asked.request_id = "mine-1".into();
    asked.sampling.as_mut().unwrap().logprobs = Some(2);
    let chunks = client.generate_stream(asked).await.unwrap().into_inner();
    let chunks: Vec<_> = chunks.map(Result::unwrap).collect().await;
    let whole: String = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    assert_eq!(whole, "né € end");
    assert!(chunks.iter().all(|chunk| chunk.request_id == "mine-1"));
    assert!(chunks.iter().all(|chunk| chunk.logprobs[0].top.len() == 2));
    let (last, before) = chunks.split_last().unwrap();
    assert!(before.iter().all(|chunk| chunk.usage.is_none()));
    assert_eq!(last.finish_reason(), FinishReason::Stop);
    let usage = last.usage.unwrap();
    assert_eq!(usage.completion_tokens as usize, ids("né € end").len() + 1);
    assert_eq!(usage.cached_tokens, 1);
}

#[tokio::test]
async fn chat_is_rendered_by_the_template() {
    let gateway = start(saying("x")).await;
    let mut client = InferenceClient::new(channel(&gateway).await);
    let message = wire::ChatMessage { role: "user".into(), content: "Hi".into() };
    let chat = Prompt::Chat(wire::Chat { messages: vec![message] });
    client.generate(request(chat)).await.unwrap();
    assert_eq!(gateway.nodes[0].requests()[0].tokens, ids("<user>Hi<assistant>"));
}

#[tokio::test]
async fn rules_are_those_of_http() {
    let gateway = start(saying("x")).await;
    let mut client = InferenceClient::new(channel(&gateway).await);
    let sampling = |sampling: SamplingParams| GenerateRequest {
        sampling: Some(sampling),
        ..request(text("And God"))
    };
    let cases = [
        (
            GenerateRequest { model: "other".into(), ..request(text("x")) },
            Code::NotFound,
            "served: demo",
        ),
        (
            sampling(SamplingParams { temperature: Some(f32::NAN), ..SamplingParams::default() }),
            Code::InvalidArgument,
            "`temperature`: expected a number of at least 0, found NaN",
        ),
        (
            sampling(SamplingParams { max_tokens: Some(0), ..SamplingParams::default() }),
            Code::InvalidArgument,
            "`max_tokens`: expected an integer of at least 1, found 0",
        ),
        (
            GenerateRequest { prompt: None, ..request(text("")) },
            Code::InvalidArgument,
            "one of `text`, `tokens` and `chat`",
        ),
        (
            request(Prompt::Tokens(wire::TokenIds { ids: vec![5000] })),
            Code::InvalidArgument,
            "found 5000",
        ),
        (
            GenerateRequest { request_id: "no id".into(), ..request(text("x")) },
            Code::InvalidArgument,
            "`request_id`: expected",
        ),
    ];
    for (asked, code, sentence) in cases {
        let status = client.generate(asked).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(sentence), "{status}");
    }
}

#[tokio::test]
async fn a_cancelled_call_frees_its_sequence() {
    let script = std::sync::Arc::new(|_: &domain::SequenceRequest| vec![Act::Hang]);
    let gateway = start(script).await;
    let mut client = InferenceClient::new(channel(&gateway).await);
    let stream = client.generate_stream(request(text("And God"))).await.unwrap();
    gateway.nodes[0].holds(1).await;
    drop(stream);
    gateway.nodes[0].holds(0).await;
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let gateway = start(saying("x")).await;
    let channel = channel(&gateway).await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "amoe.v1.Inference", "demo"] {
        let asked = HealthCheckRequest { service: service.into() };
        // The status follows the view, in a task of its own.
        loop {
            let status = health.check(asked.clone()).await.unwrap().into_inner().status();
            if status == ServingStatus::Serving {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let ask = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let asked = futures::stream::iter([ask]);
    let mut answers = reflection.server_reflection_info(asked).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"amoe.v1.Inference"), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");

    let mut older = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let ask = v1alpha::ServerReflectionRequest {
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
        ..v1alpha::ServerReflectionRequest::default()
    };
    let mut answers =
        older.server_reflection_info(futures::stream::iter([ask])).await.unwrap().into_inner();
    assert!(answers.next().await.unwrap().is_ok());
}

#[tokio::test]
async fn a_key_is_wanted_but_for_health() {
    let keys = keyed();
    let gateway = start_trusting(keys.trust, vec![saying("x")], |_| {}).await;
    let channel = channel(&gateway).await;
    let mut client = InferenceClient::new(channel.clone());
    let mut ask = async |key: Option<&str>| {
        let mut call = tonic::Request::new(request(text("And")));
        if let Some(key) = key {
            let key = format!("Bearer {key}").parse().unwrap();
            call.metadata_mut().insert("authorization", key);
        }
        client.generate(call).await.map(drop).map_err(|status| status.code())
    };
    assert_eq!(ask(None).await, Err(Code::Unauthenticated));
    assert_eq!(ask(Some("x")).await, Err(Code::Unauthenticated));
    assert_eq!(ask(Some(&keys.metrics)).await, Err(Code::PermissionDenied));
    assert_eq!(ask(Some(&keys.inference)).await, Ok(()));
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_message_that_does_not_come_is_not_waited_for() {
    let impatient = |config: &mut ::gateway::Config| config.server.receive_timeout_s = 1;
    let gateway = start_with(vec![saying("x")], impatient).await;
    let mut grpc = tonic::client::Grpc::new(channel(&gateway).await);
    grpc.ready().await.unwrap();
    let path = "/amoe.v1.Inference/Generate".parse().unwrap();
    let codec =
        tonic_prost::ProstCodec::<proto::v1::GenerateRequest, proto::v1::GenerateResponse>::default(
        );
    let never = tonic::Request::new(futures::stream::pending());
    let status = grpc.client_streaming(never, path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("did not come within 1s"), "{status}");
}

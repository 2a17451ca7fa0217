use crate::{Queue, message_with_a_long_error_becomes_dead};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::{self, stream};
use background_tasks_consumer::conformance::Broker;
use background_tasks_consumer::{JetStream, Release, Source};
use futures_util::StreamExt;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(3);

pub(crate) struct Nats {
    address: String,
    name: String,
    context: jetstream::Context,
    stream: stream::Stream,
}

async fn context(address: &str) -> jetstream::Context {
    jetstream::new(async_nats::connect(address).await.unwrap())
}

impl Nats {
    async fn consumer(&self) -> PullConsumer {
        let config = pull::Config {
            durable_name: Some("workers".into()),
            filter_subject: format!("{}.jobs", self.name),
            ack_wait: LEASE,
            max_ack_pending: -1,
            max_deliver: -1,
            ..pull::Config::default()
        };
        self.stream.get_or_create_consumer("workers", config).await.unwrap()
    }
}

impl Queue for Nats {
    const NAME: &'static str = "nats";

    async fn open(address: &str, name: &str) -> Self {
        let context = context(address).await;
        let subjects = vec![format!("{name}.jobs"), format!("{name}.dead")];
        let config = stream::Config { name: name.into(), subjects, ..stream::Config::default() };
        let stream = context.get_or_create_stream(config).await.unwrap();
        Self { address: address.into(), name: name.into(), context, stream }
    }

    async fn check_details(address: &str) {
        stray_message_is_reported_and_loses_no_other(address).await;
        calls_fail_without_the_consumer(&Self::open(address, "deleted").await).await;
        message_with_headers_for_the_server_becomes_dead(&Self::open(address, "headers").await).await;
        message_with_a_long_error_becomes_dead(&Self::open(address, "long-error").await).await;
    }
}

impl Broker for Nats {
    type Source = JetStream;

    async fn connect(&self) -> JetStream {
        JetStream::new(context(&self.address).await, self.consumer().await, format!("{}.dead", self.name)).unwrap()
    }

    async fn send(&self, payload: String) {
        self.context.publish(format!("{}.jobs", self.name), payload.into()).await.unwrap().await.unwrap();
    }

    async fn dead_letters(&self) -> Vec<Vec<u8>> {
        let config = pull::Config { filter_subject: format!("{}.dead", self.name), ..pull::Config::default() };
        let consumer = self.stream.create_consumer(config).await.unwrap();
        let messages = consumer.batch().max_messages(100).expires(Duration::from_secs(1)).messages().await.unwrap();
        messages.map(|message| message.unwrap().payload.to_vec()).collect().await
    }
}

/// A batch contains a message that JetStream has not sent, followed by a message of the stream.
async fn stray_message_is_reported_and_loses_no_other(address: &str) {
    // On a busy machine, the request can expire before both messages arrive. The test then tries again.
    for n in 0..5 {
        let queue = Nats::open(address, &format!("stray{n}")).await;
        let source = queue.connect().await;
        let client = async_nats::connect(address).await.unwrap();
        let mut requests = client.subscribe(format!("$JS.API.CONSUMER.MSG.NEXT.stray{n}.workers")).await.unwrap();
        // The server processes the calls of a client in order. A response therefore shows that it has processed the earlier calls.
        let processed = async || drop(jetstream::new(client.clone()).get_stream(&queue.name).await.unwrap());
        processed().await;
        let send = async {
            let inbox = requests.next().await.unwrap().reply.unwrap();
            client.publish(inbox, "stray".into()).await.unwrap();
            processed().await;
            queue.send("1".into()).await;
        };
        let (received, ()) = futures_util::join!(source.receive(10), send);
        let Some(mut message) = received.ok().and_then(|mut received| received.pop()) else { continue };
        assert_eq!(message.delivery.payload(), b"1");
        source.ack(&mut message.receipt).await.unwrap();
        let error = source.receive(10).await.err().unwrap().to_string();
        assert!(error.starts_with("received a message that JetStream has not sent"), "{error}");
        assert!(source.receive(10).await.unwrap().is_empty());
        return;
    }
    panic!("no batch contained the other message");
}

/// Without the JetStream consumer, the server responds that the acknowledgement's subject has no subscriber. The source must treat this
/// response as an error.
async fn calls_fail_without_the_consumer(queue: &Nats) {
    let source = queue.connect().await;
    queue.send("1".into()).await;
    let mut message = source.receive(1).await.unwrap().remove(0);
    queue.stream.delete_consumer("workers").await.unwrap();
    source.ack(&mut message.receipt).await.unwrap_err();
    source.extend(&mut message.receipt).await.unwrap_err();
    source.release(&mut message.receipt, Release::Shutdown).await.unwrap_err();
}

/// The stream rejects the second message with this header, because its last sequence number is no longer 1.
async fn message_with_headers_for_the_server_becomes_dead(queue: &Nats) {
    queue.send("1".into()).await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Sequence", "1");
    headers.insert("Tenant", "7");
    queue.context.publish_with_headers("headers.jobs", headers, "2".into()).await.unwrap().await.unwrap();
    let source = queue.connect().await;
    let mut message = loop {
        if let Some(message) = source.receive(2).await.unwrap().into_iter().find(|message| message.delivery.payload() == b"2") {
            break message;
        }
    };
    source.dead_letter(&message.delivery, &mut message.receipt, "invalid").await.unwrap();
    let dead = queue.stream.get_last_raw_message_by_subject("headers.dead").await.unwrap();
    let header = |name: &str| dead.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("Nats-Expected-Last-Sequence"), None);
    assert_eq!((header("Tenant").as_deref(), header("Dead-Letter-Reason").as_deref()), (Some("7"), Some("invalid")));
}

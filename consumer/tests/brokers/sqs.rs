use crate::Queue;
use crate::sqs_client::sqs_client;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::operation::send_message::builders::SendMessageFluentBuilder;
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    Message as SqsMessage, MessageAttributeValue, MessageSystemAttributeName, MessageSystemAttributeNameForSends,
    MessageSystemAttributeValue,
};
use background_tasks_consumer::conformance::Broker;
use background_tasks_consumer::{Message, Release, Source, SqsQueue, SqsReceipt};
use std::collections::BTreeMap;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(3);

pub(crate) struct Sqs {
    address: String,
    client: Client,
    queue: String,
}

impl Sqs {
    fn dead(&self) -> String {
        format!("{}-dead", self.queue)
    }

    async fn dead_messages(&self) -> Vec<SqsMessage> {
        let receive = self.client.receive_message().queue_url(self.dead()).max_number_of_messages(10);
        let receive = receive.message_attribute_names("All").message_system_attribute_names(MessageSystemAttributeName::All);
        receive.send().await.unwrap().messages.unwrap_or_default()
    }

    fn message(&self, body: &str) -> SendMessageFluentBuilder {
        self.client.send_message().queue_url(&self.queue).message_body(body)
    }
}

impl Queue for Sqs {
    const NAME: &'static str = "sqs";

    async fn open(address: &str, name: &str) -> Self {
        let client = sqs_client(address);
        let queue = client.create_queue().queue_name(name).send().await.unwrap().queue_url.unwrap();
        client.create_queue().queue_name(format!("{name}-dead")).send().await.unwrap();
        Self { address: address.into(), client, queue }
    }

    async fn check_details(address: &str) {
        let open = async |name: &str| Self::open(address, name).await;
        attributes_are_headers_and_stay_with_the_dead_message(&open("attributes").await).await;
        dead_message_without_room_has_no_reason(&open("room").await).await;
        repeated_dead_letter_sends_one_copy(&open("repeated").await).await;
        delay_beyond_the_limit_is_shortened(address).await;
        settled_message_makes_its_receipt_void(&open("void").await).await;
        errors_name_their_cause(&open("errors").await).await;
    }
}

impl Broker for Sqs {
    type Source = SqsQueue;

    async fn connect(&self) -> SqsQueue {
        SqsQueue::new(sqs_client(&self.address), &self.queue, self.dead(), LEASE)
    }

    async fn send(&self, payload: String) {
        self.message(&payload).send().await.unwrap();
    }

    async fn dead_letters(&self) -> Vec<Vec<u8>> {
        self.dead_messages().await.into_iter().map(|message| message.body.unwrap_or_default().into_bytes()).collect()
    }
}

fn text(kind: &str, value: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder().data_type(kind).string_value(value).build().unwrap()
}

/// Receives the only message of a queue.
async fn one(source: &SqsQueue) -> Message<SqsReceipt> {
    let [message] = <[_; 1]>::try_from(source.receive(10).await.unwrap()).unwrap();
    message
}

async fn attributes_are_headers_and_stay_with_the_dead_message(queue: &Sqs) {
    let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1";
    let binary = MessageAttributeValue::builder().data_type("Binary").binary_value(Blob::new([0, 255])).build().unwrap();
    let message = queue.message("<1>").message_attributes("traceparent", text("String", context));
    let message = message.message_attributes("number", text("Number", "7")).message_attributes("bytes", binary.clone());
    let header = MessageSystemAttributeValue::builder().data_type("String").string_value(trace).build().unwrap();
    let message = message.message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, header);
    let id = message.send().await.unwrap().message_id.unwrap();

    let source = queue.connect().await;
    let Message { delivery, mut receipt } = one(&source).await;
    assert_eq!(delivery.id(), id);
    let headers: BTreeMap<_, _> = delivery.headers().collect();
    assert_eq!(headers, BTreeMap::from([("traceparent", context), ("number", "7"), ("X-Amzn-Trace-Id", trace)]));

    source.dead_letter(&delivery, &mut receipt, "too bad\n\u{1}really").await.unwrap();
    let [dead] = <[_; 1]>::try_from(queue.dead_messages().await).unwrap();
    assert_eq!(dead.body(), Some("<1>"));
    assert_eq!(dead.attributes().unwrap().get(&MessageSystemAttributeName::AwsTraceHeader).map(String::as_str), Some(trace));
    let attributes = dead.message_attributes().unwrap();
    let expected = [
        ("traceparent", text("String", context)),
        ("number", text("Number", "7")),
        ("bytes", binary),
        ("Dead-Letter-Reason", text("String", "too bad  really")),
    ];
    assert_eq!(attributes.len(), expected.len());
    for (name, value) in expected {
        assert_eq!(attributes.get(name), Some(&value));
    }
}

async fn dead_message_without_room_has_no_reason(queue: &Sqs) {
    let source = queue.connect().await;
    let mut full = queue.message("full");
    for n in 0..10 {
        full = full.message_attributes(format!("a{n}"), text("String", "1"));
    }
    for (message, reason) in [(full, "why"), (queue.message(&"x".repeat(200 * 1024)), "why"), (queue.message("short"), "")] {
        message.send().await.unwrap();
        let Message { delivery, mut receipt } = one(&source).await;
        source.dead_letter(&delivery, &mut receipt, reason).await.unwrap();
    }
    let dead = queue.dead_messages().await;
    assert_eq!(dead.len(), 3);
    assert!(dead.iter().filter_map(SqsMessage::message_attributes).all(|names| !names.contains_key("Dead-Letter-Reason")));
}

async fn repeated_dead_letter_sends_one_copy(queue: &Sqs) {
    queue.send("1".into()).await;
    let source = queue.connect().await;
    let Message { delivery, mut receipt } = one(&source).await;
    // After this call, copying the message to the dead-letter queue succeeds, and deleting the message fails.
    queue.client.delete_queue().queue_url(&queue.queue).send().await.unwrap();
    for _ in 0..2 {
        source.dead_letter(&delivery, &mut receipt, "why").await.unwrap_err();
    }
    assert_eq!(queue.dead_letters().await, [b"1"]);
}

async fn delay_beyond_the_limit_is_shortened(address: &str) {
    let mut rejected = 0;
    for n in 0.. {
        let queue = Sqs::open(address, &format!("delay{n}")).await;
        let source = queue.connect().await;
        // The limit of 12 hours starts in moto when a message is sent, and in SQS when the message is received. The test sends this message
        // while `receive` waits for it, so the two times are the same.
        let (received, ()) = futures_util::join!(source.receive(1), queue.send("1".into()));
        if let Some(Message { mut receipt, .. }) = received.unwrap().pop() {
            // On a busy machine, moto sends the message earlier than `receive` returns it, and rejects the delay.
            if let Err(error) = source.release(&mut receipt, Release::After(Duration::from_secs(100_000))).await {
                rejected += 1;
                assert!(error.to_string().contains("43200") && rejected < 5, "{error}");
                continue;
            }
            assert!(source.receive(1).await.unwrap().is_empty());
            return;
        }
    }
}

async fn settled_message_makes_its_receipt_void(queue: &Sqs) {
    queue.send("1".into()).await;
    let source = queue.connect().await;
    let Message { mut receipt, .. } = one(&source).await;
    source.ack(&mut receipt).await.unwrap();
    source.ack(&mut receipt).await.unwrap();
    let error = source.extend(&mut receipt).await.unwrap_err();
    assert!(source.is_void(&error), "{error}");
}

async fn errors_name_their_cause(queue: &Sqs) {
    let missing = SqsQueue::new(sqs_client(&queue.address), format!("{}-missing", queue.queue), queue.dead(), LEASE);
    let error = missing.receive(1).await.unwrap_err();
    assert!(error.to_string().contains("The specified queue does not exist"), "{error}");
    assert!(missing.is_void(&error));

    let address = format!("http://127.0.0.1:{}", testing::free_port());
    let unreachable = SqsQueue::new(sqs_client(&address), &queue.queue, queue.dead(), LEASE);
    let error = unreachable.receive(1).await.unwrap_err();
    assert!(error.to_string().contains("Connection refused"), "{error}");
    assert!(!unreachable.is_void(&error));
}

use crate::{Queue, message_with_a_long_error_becomes_dead, server};
use background_tasks_consumer::conformance::Broker;
use background_tasks_consumer::{Message, RabbitQueue, RabbitReceipt, Release, Source};
use lapin::message::BasicGetMessage;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use std::time::Duration;

struct Rabbit {
    address: String,
    name: String,
    channel: Channel,
    _connection: Connection,
}

pub(crate) struct Quorum(Rabbit);
pub(crate) struct Classic(Rabbit);

impl Rabbit {
    async fn open(address: &str, name: &str, kind: &str) -> Self {
        Self::open_with(address, name, kind, FieldTable::default()).await
    }

    async fn open_with(address: &str, name: &str, kind: &str, mut arguments: FieldTable) -> Self {
        let connection = Connection::connect(address, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel.queue_declare(name.into(), durable, arguments).await.unwrap();
        channel.queue_declare(format!("{name}.dead").into(), durable, FieldTable::default()).await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { address: address.into(), name: name.into(), channel, _connection: connection }
    }

    async fn send(&self, payload: String) {
        self.send_with(&payload, BasicProperties::default()).await;
    }

    async fn send_with(&self, payload: &str, properties: BasicProperties) {
        let properties = properties.with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let published = self.channel.basic_publish("".into(), self.name.as_str().into(), options, payload.as_bytes(), properties);
        published.await.unwrap().await.unwrap();
    }

    async fn dead_letters(&self) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        while let Some(message) = self.dead_letter().await {
            payloads.push(message.delivery.data);
        }
        payloads
    }

    async fn dead_letter(&self) -> Option<BasicGetMessage> {
        let name = format!("{}.dead", self.name);
        self.channel.basic_get(name.into(), BasicGetOptions { no_ack: true }).await.unwrap()
    }
}

macro_rules! queue {
    ($queue:ident, $kind:literal, $name:literal, $constructor:ident, $($details:ident),*) => {
        impl Queue for $queue {
            const NAME: &'static str = $name;

            async fn open(address: &str, name: &str) -> Self {
                Self(Rabbit::open(address, name, $kind).await)
            }

            async fn check_details(address: &str) {
                let queue = Self::open(address, "copies").await;
                copies_omit_properties(&queue.0, &queue.connect().await).await;
                message_with_a_long_error_becomes_dead(&Self::open(address, "long-error").await).await;
                $($details(address).await;)*
            }
        }

        impl Broker for $queue {
            type Source = RabbitQueue;

            async fn connect(&self) -> RabbitQueue {
                let Rabbit { address, name, .. } = &self.0;
                RabbitQueue::$constructor(address, name, format!("{name}.dead"))
            }

            async fn send(&self, payload: String) {
                self.0.send(payload).await;
            }

            async fn dead_letters(&self) -> Vec<Vec<u8>> {
                self.0.dead_letters().await
            }
        }
    };
}
queue!(Quorum, "quorum", "rabbitmq-quorum", quorum, deliveries_from_another_queue_do_not_count);
queue!(Classic, "classic", "rabbitmq-classic", classic, full_queue_takes_its_message_back, copies_use_a_second_connection);

async fn receive(source: &RabbitQueue) -> Message<RabbitReceipt> {
    loop {
        if let Some(message) = source.receive(1).await.unwrap().pop() {
            return message;
        }
    }
}

/// The broker interprets the properties that the copies omit.
async fn copies_omit_properties(queue: &Rabbit, source: &RabbitQueue) {
    let other = format!("{}.cc", queue.name);
    queue.channel.queue_declare(other.as_str().into(), QueueDeclareOptions::default(), FieldTable::default()).await.unwrap();
    let mut headers = FieldTable::default();
    headers.insert("CC".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongString(other.as_str().into())])));
    headers.insert("tenant".into(), AMQPValue::LongString("7".into()));
    let properties = BasicProperties::default().with_user_id("guest".into()).with_expiration("60000".into());
    queue.send_with("1", properties.with_message_id("id".into()).with_type("mail".into()).with_headers(headers)).await;
    let mut message = receive(source).await;
    source.release(&mut message.receipt, Release::After(Duration::ZERO)).await.unwrap();
    let mut message = receive(source).await;
    assert_eq!(message.delivery.attempt(), 2);
    source.dead_letter(&message.delivery, &mut message.receipt, "invalid").await.unwrap();

    let dead = queue.dead_letter().await.unwrap();
    let properties = &dead.delivery.properties;
    assert_eq!((properties.expiration(), properties.user_id()), (&None, &None));
    assert_eq!((properties.message_id(), properties.kind()), (&Some("id".into()), &Some("mail".into())));
    let names: Vec<_> = properties.headers().iter().flat_map(|headers| headers.inner().keys()).map(ToString::to_string).collect();
    assert_eq!(names, ["tenant", "x-dead-letter-reason"]);
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let other = queue.channel.queue_declare(other.into(), passive, FieldTable::default()).await.unwrap();
    assert_eq!(other.message_count(), 1);
}

/// An operator moves a message back from the dead-letter queue. The message has the delivery count of its first queue.
async fn deliveries_from_another_queue_do_not_count(address: &str) {
    let queue = Quorum::open(address, "moved").await;
    let mut headers = FieldTable::default();
    headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(25));
    queue.0.send_with("1", BasicProperties::default().with_headers(headers)).await;
    let source = queue.connect().await;
    for attempt in 1..4 {
        let mut message = receive(&source).await;
        assert_eq!(message.delivery.attempt(), attempt);
        source.release(&mut message.receipt, Release::After(Duration::ZERO)).await.unwrap();
    }
}

/// A full queue rejects the copy of a failed message.
async fn full_queue_takes_its_message_back(address: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let queue = Classic(Rabbit::open_with(address, "full", "classic", arguments).await);
    let source = queue.connect().await.prefetch(1);
    queue.send("1".into()).await;
    let mut message = receive(&source).await;
    queue.send("2".into()).await;
    source.release(&mut message.receipt, Release::After(Duration::ZERO)).await.unwrap();
    for payload in [b"1", b"2"] {
        let mut message = receive(&source).await;
        assert_eq!(message.delivery.payload(), payload);
        source.ack(&mut message.receipt).await.unwrap();
    }
}

/// Starts another broker, because these tests would disturb the other tests.
async fn copies_use_a_second_connection(_: &str) {
    let (server, address) = server::rabbitmq().unwrap();
    let control = |arguments: &[&str]| {
        tokio::task::block_in_place(|| server.run("/usr/lib/rabbitmq/bin/rabbitmqctl", arguments));
    };
    alarm_blocks_no_acknowledgement(&address, control).await;
    message_of_a_closed_connection_is_not_copied(&address, control).await;
}

/// During a memory alarm, the broker reads nothing from a connection that publishes.
async fn alarm_blocks_no_acknowledgement(address: &str, control: impl Fn(&[&str])) {
    let queue = Classic::open(address, "alarm").await;
    let source = queue.connect().await;
    queue.send("dead".into()).await;
    queue.send("done".into()).await;
    let (mut dead, mut done) = (receive(&source).await, receive(&source).await);
    control(&["set_vm_memory_high_watermark", "absolute", "1"]);
    // Drops the calls after a time limit and repeats them, as the consumer does.
    for _ in 0..2 {
        let call = source.dead_letter(&dead.delivery, &mut dead.receipt, "invalid");
        tokio::time::timeout(Duration::from_secs(2), call).await.unwrap_err();
    }
    // After `stop`, the source waits for a response of the broker.
    let ack = async {
        source.stop().await.unwrap();
        source.ack(&mut done.receipt).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(30), ack).await.expect("the broker has handled the acknowledgement");
    control(&["set_vm_memory_high_watermark", "0.4"]);
    source.dead_letter(&dead.delivery, &mut dead.receipt, "invalid").await.unwrap();
    assert_eq!(queue.dead_letters().await, [b"dead"]);
}

/// When the connection closes, the message returns to its queue. A copy would therefore be a second message.
async fn message_of_a_closed_connection_is_not_copied(address: &str, control: impl Fn(&[&str])) {
    let queue = Classic::open(address, "closed").await;
    let source = queue.connect().await;
    queue.send("1".into()).await;
    let mut message = receive(&source).await;
    control(&["close_all_connections", "test"]);
    while source.receive(1).await.is_ok() {}
    let error = source.release(&mut message.receipt, Release::After(Duration::ZERO)).await.unwrap_err();
    assert!(source.is_void(&error), "{error}");
    let queue = Classic::open(address, "closed").await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = queue.0.channel.queue_declare("closed".into(), passive, FieldTable::default()).await.unwrap();
    assert_eq!(declared.message_count(), 1);
}

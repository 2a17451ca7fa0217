use crate::Queue;
use background_tasks_consumer::RabbitQueue;
use background_tasks_consumer::conformance::Broker;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

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
        let connection = Connection::connect(address, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel.queue_declare(name.into(), durable, arguments).await.unwrap();
        channel.queue_declare(format!("{name}.dead").into(), durable, FieldTable::default()).await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { address: address.into(), name: name.into(), channel, _connection: connection }
    }

    async fn send(&self, payload: String) {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let published = self.channel.basic_publish("".into(), self.name.as_str().into(), options, payload.as_bytes(), properties);
        published.await.unwrap().await.unwrap();
    }

    async fn dead_letters(&self) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        let name = format!("{}.dead", self.name);
        while let Some(message) = self.channel.basic_get(name.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap() {
            payloads.push(message.delivery.data);
        }
        payloads
    }
}

macro_rules! queue {
    ($queue:ident, $kind:literal, $name:literal, $constructor:ident) => {
        impl Queue for $queue {
            const NAME: &'static str = $name;

            async fn open(address: &str, name: &str) -> Self {
                Self(Rabbit::open(address, name, $kind).await)
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
queue!(Quorum, "quorum", "rabbitmq-quorum", quorum);
queue!(Classic, "classic", "rabbitmq-classic", classic);

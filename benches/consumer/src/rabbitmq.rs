use crate::load::Load;
use crate::{Queue, unique_name};
use background_tasks_consumer::RabbitQueue;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use std::sync::Arc;
use tokio::task::JoinSet;

pub(crate) struct Rabbit {
    address: String,
    name: String,
    connection: Connection,
    channel: Channel,
}

impl Queue for Rabbit {
    type Source = RabbitQueue;

    async fn create(address: &str) -> Self {
        let name = unique_name();
        let connection = Connection::connect(address, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare(name.as_str().into(), durable, arguments).await.unwrap();
        channel.queue_declare("dead".into(), durable, FieldTable::default()).await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { address: address.into(), name, connection, channel }
    }

    async fn send(&self, payload: &'static [u8]) {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default().with_delivery_mode(2));
        let published = self.channel.basic_publish("".into(), self.name.as_str().into(), options, payload, properties);
        published.await.unwrap().await.unwrap();
    }

    async fn source(&self, concurrency: u16) -> RabbitQueue {
        RabbitQueue::quorum(&self.address, &self.name, "dead").prefetch(concurrency)
    }

    async fn bare(&self, concurrency: usize, load: Arc<Load>) {
        let channel = self.connection.create_channel().await.unwrap();
        let prefetch = u16::try_from(concurrency).unwrap();
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
        let options = BasicConsumeOptions::default();
        let mut consumer =
            channel.basic_consume(self.name.as_str().into(), "".into(), options, FieldTable::default()).await.unwrap();
        let (mut received, mut tasks) = (0, JoinSet::new());
        while received < load.messages() {
            // The broker limits the number of messages without an acknowledgement to `prefetch`.
            let (delivery, load) = (consumer.next().await.unwrap().unwrap(), load.clone());
            received += 1;
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                load.handle().await;
                assert!(delivery.ack(BasicAckOptions::default()).await.unwrap());
            });
        }
        tasks.join_all().await;
        // The broker handles calls in order, so the response to this call shows that the broker has handled all acknowledgements.
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
    }
}

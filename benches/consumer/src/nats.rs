use crate::load::Load;
use crate::{LEASE, Queue, free, unique_name};
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::{self, AckKind, stream};
use background_tasks_consumer::JetStream;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

pub(crate) struct Nats {
    context: jetstream::Context,
    consumer: PullConsumer,
    subject: String,
}

impl Queue for Nats {
    type Source = JetStream;

    async fn create(address: &str) -> Self {
        let name = unique_name();
        let context = jetstream::new(async_nats::connect(address).await.unwrap());
        let subjects = vec![format!("{name}.*")];
        let stream =
            context.create_stream(stream::Config { name: name.clone(), subjects, ..stream::Config::default() }).await.unwrap();
        let subject = format!("{name}.jobs");
        let config = pull::Config {
            durable_name: Some("workers".into()),
            filter_subject: subject.clone(),
            ack_wait: LEASE,
            max_deliver: -1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.unwrap();
        Self { context, consumer, subject }
    }

    async fn send(&self, payload: &'static [u8]) {
        self.context.publish(self.subject.clone(), payload.into()).await.unwrap().await.unwrap();
    }

    async fn source(&self, _: u16) -> JetStream {
        JetStream::new(self.context.clone(), self.consumer.clone(), "dead").unwrap()
    }

    async fn bare(&self, concurrency: usize, load: Arc<Load>) {
        let (mut received, mut tasks) = (0, JoinSet::new());
        while received < load.messages() {
            // Fetches only messages whose tasks can start immediately, because `ack_wait` also counts the time in which a message waits
            // for its task.
            let free = free(&mut tasks, concurrency).await;
            let batch = self.consumer.fetch().max_messages(free).expires(Duration::from_secs(1));
            let mut messages = batch.messages().await.unwrap();
            while let Some(message) = messages.next().await {
                let (message, client, load) = (message.unwrap(), self.context.client(), load.clone());
                received += 1;
                tasks.spawn(async move {
                    load.handle().await;
                    // As the source does: `double_ack` accepts the response that the subject has no subscriber.
                    client.request(message.message.reply.unwrap(), AckKind::Ack.into()).await.unwrap();
                });
            }
        }
        tasks.join_all().await;
    }
}

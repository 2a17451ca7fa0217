use crate::load::Load;
use crate::{LEASE, Queue};
use aws_credential_types::Credentials;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Region};
use background_tasks_consumer::SqsQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinSet;

pub(crate) struct Sqs {
    client: Client,
    url: String,
}

impl Queue for Sqs {
    type Source = SqsQueue;

    async fn create(address: &str) -> Self {
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "bench"))
            .endpoint_url(address)
            .http_client(aws_smithy_http_client::Builder::new().build_http());
        let client = Client::from_conf(config.build());
        let name = format!("q{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let url = client.create_queue().queue_name(name).send().await.unwrap().queue_url.unwrap();
        Self { client, url }
    }

    async fn send(&self, payload: &'static [u8]) {
        let body = str::from_utf8(payload).unwrap();
        self.client.send_message().queue_url(&self.url).message_body(body).send().await.unwrap();
    }

    async fn source(&self, _: u16) -> SqsQueue {
        SqsQueue::new(self.client.clone(), &self.url, &self.url, LEASE)
    }

    async fn bare(&self, concurrency: usize, load: Arc<Load>) {
        let (mut received, mut tasks) = (0, JoinSet::new());
        while received < load.messages() {
            while tasks.len() >= concurrency {
                tasks.join_next().await;
            }
            while tasks.try_join_next().is_some() {}
            let most = i32::try_from((concurrency - tasks.len()).min(10)).unwrap();
            let receive = self.client.receive_message().queue_url(&self.url).max_number_of_messages(most);
            let receive = receive.visibility_timeout(LEASE.as_secs() as i32).wait_time_seconds(1).send().await.unwrap();
            for message in receive.messages.unwrap_or_default() {
                let (client, url, load) = (self.client.clone(), self.url.clone(), load.clone());
                received += 1;
                tasks.spawn(async move {
                    load.handle().await;
                    let receipt = message.receipt_handle.unwrap();
                    client.delete_message().queue_url(url).receipt_handle(receipt).send().await.unwrap();
                });
            }
        }
        tasks.join_all().await;
    }
}

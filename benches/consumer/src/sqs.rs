use crate::load::Load;
use crate::sqs_client::sqs_client;
use crate::{LEASE, Queue, free, unique_name};
use aws_sdk_sqs::Client;
use background_tasks_consumer::SqsQueue;
use std::sync::Arc;
use tokio::task::JoinSet;

pub(crate) struct Sqs {
    client: Client,
    url: String,
}

impl Queue for Sqs {
    type Source = SqsQueue;

    async fn create(address: &str) -> Self {
        let client = sqs_client(address);
        let url = client.create_queue().queue_name(unique_name()).send().await.unwrap().queue_url.unwrap();
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
            let free = free(&mut tasks, concurrency).await;
            let most = i32::try_from(free.min(10)).unwrap();
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

use crate::load::Load;
use crate::{LEASE, Queue, free, unique_name};
use azure_core::http::Url;
use azure_storage_queue::QueueClient;
use azure_storage_queue::models::{QueueClientReceiveMessagesOptions, QueueMessage};
use background_tasks_consumer::AzureQueue;
use std::sync::Arc;
use tokio::task::JoinSet;

pub(crate) struct Azure {
    address: String,
    queue: Arc<QueueClient>,
}

fn client(address: &str) -> QueueClient {
    QueueClient::new(Url::parse(address).unwrap(), None, None).unwrap()
}

impl Queue for Azure {
    type Source = AzureQueue;

    async fn create(address: &str) -> Self {
        let address = address.replace("QUEUE", &unique_name());
        let queue = Arc::new(client(&address));
        queue.create(None).await.unwrap();
        Self { address, queue }
    }

    async fn send(&self, payload: &'static [u8]) {
        let message = QueueMessage { message_text: Some(String::from_utf8(payload.to_vec()).unwrap()) };
        self.queue.send_message(message.try_into().unwrap(), None).await.unwrap();
    }

    async fn source(&self, _: u16) -> AzureQueue {
        AzureQueue::new(client(&self.address), client(&self.address), LEASE)
    }

    async fn bare(&self, concurrency: usize, load: Arc<Load>) {
        let (mut received, mut tasks) = (0, JoinSet::new());
        while received < load.messages() {
            let free = free(&mut tasks, concurrency).await;
            let options = QueueClientReceiveMessagesOptions {
                number_of_messages: i32::try_from(free.min(32)).ok(),
                visibility_timeout: i32::try_from(LEASE.as_secs()).ok(),
                ..QueueClientReceiveMessagesOptions::default()
            };
            let response = self.queue.receive_messages(Some(options)).await.unwrap();
            for message in response.into_model().unwrap().items.unwrap_or_default() {
                let (queue, load) = (self.queue.clone(), load.clone());
                received += 1;
                tasks.spawn(async move {
                    load.handle().await;
                    let (id, receipt) = (message.message_id.unwrap(), message.pop_receipt.unwrap());
                    queue.delete_message(&id, &receipt, None).await.unwrap();
                });
            }
        }
        tasks.join_all().await;
    }
}

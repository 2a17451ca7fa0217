use crate::Queue;
use azure_core::http::Url;
use azure_storage_queue::QueueClient;
use azure_storage_queue::models::{QueueClientReceiveMessagesOptions, QueueClientSendMessageOptions, QueueMessage};
use background_tasks_consumer::AzureQueue;
use background_tasks_consumer::conformance::Broker;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(3);

pub(crate) struct Azure {
    queue: QueueClient,
    dead: QueueClient,
    address: String,
    name: String,
}

fn client(address: &str, name: &str) -> QueueClient {
    QueueClient::new(Url::parse(&address.replace("QUEUE", name)).unwrap(), None, None).unwrap()
}

impl Queue for Azure {
    const NAME: &'static str = "azure";

    async fn open(address: &str, name: &str) -> Self {
        let name = format!("queue-{name}");
        let (queue, dead) = (client(address, &name), client(address, &format!("{name}-dead")));
        // Fails if the queue exists.
        let _ = (queue.create(None).await, dead.create(None).await);
        Self { queue, dead, address: address.into(), name }
    }
}

impl Broker for Azure {
    type Source = AzureQueue;

    async fn connect(&self) -> AzureQueue {
        let dead = client(&self.address, &format!("{}-dead", self.name));
        AzureQueue::new(client(&self.address, &self.name), dead, LEASE).poll_interval(Duration::from_millis(100))
    }

    async fn send(&self, payload: String) {
        let options = QueueClientSendMessageOptions { message_time_to_live: Some(-1), ..QueueClientSendMessageOptions::default() };
        let message = QueueMessage { message_text: Some(payload) };
        self.queue.send_message(message.try_into().unwrap(), Some(options)).await.unwrap();
    }

    async fn dead_letters(&self) -> Vec<Vec<u8>> {
        let options =
            QueueClientReceiveMessagesOptions { number_of_messages: Some(32), ..QueueClientReceiveMessagesOptions::default() };
        let received = self.dead.receive_messages(Some(options)).await.unwrap().into_model().unwrap().items.unwrap_or_default();
        received.into_iter().map(|message| message.message_text.unwrap_or_default().into_bytes()).collect()
    }
}

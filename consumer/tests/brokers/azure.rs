use crate::Queue;
use azure_core::http::Url;
use azure_storage_queue::QueueClient;
use azure_storage_queue::models::{QueueClientReceiveMessagesOptions, QueueClientSendMessageOptions, QueueMessage};
use background_tasks_consumer::conformance::Broker;
use background_tasks_consumer::{AzureQueue, Source};
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
        // These calls fail if the queues already exist.
        let _ = (queue.create(None).await, dead.create(None).await);
        Self { queue, dead, address: address.into(), name }
    }

    async fn check_details(address: &str) {
        ack_succeeds_without_its_message_but_not_without_its_queue(&Self::open(address, "missing").await).await;
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

async fn ack_succeeds_without_its_message_but_not_without_its_queue(queue: &Azure) {
    queue.send("1".into()).await;
    queue.send("2".into()).await;
    let source = queue.connect().await;
    let [mut first, mut second] = <[_; 2]>::try_from(source.receive(2).await.unwrap()).unwrap();
    source.ack(&mut first.receipt).await.unwrap();
    source.ack(&mut first.receipt).await.unwrap();
    queue.queue.delete(None).await.unwrap();
    let error = source.ack(&mut second.receipt).await.unwrap_err();
    assert!(source.is_void(&error), "{error}");
}

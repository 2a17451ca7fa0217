use crate::Queue;
use crate::server::{Server, find, free_port};
use azure_core::http::Url;
use azure_storage_queue::QueueClient;
use azure_storage_queue::models::{QueueClientReceiveMessagesOptions, QueueClientSendMessageOptions, QueueMessage};
use background_tasks_consumer::AzureQueue;
use background_tasks_consumer::conformance::Broker;
use std::env;
use std::process::Command;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(3);

/// Prints a shared access signature for the account that azurite has, with its key, which is public.
const SIGN: &str = r"
const key = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';
const fields = ['devstoreaccount1', 'rwdlacup', 'q', 'sco', '', '2099-01-01T00:00:00Z', '', 'https,http', '2021-12-02', '', ''];
const signature = require('crypto').createHmac('sha256', Buffer.from(key, 'base64')).update(fields.join('\n')).digest('base64');
console.log('sv=2021-12-02&ss=q&srt=sco&sp=rwdlacup&se=2099-01-01T00:00:00Z&spr=https,http&sig=' + encodeURIComponent(signature));
";

pub(crate) struct Azure {
    queue: QueueClient,
    dead: QueueClient,
    address: String,
    name: String,
}

/// The environment variable `AZURITE` names the program `azurite-queue`, unless it is in one of the usual folders.
pub(crate) fn start() -> Result<(Server, String), String> {
    let program = env::var("AZURITE").unwrap_or_default();
    let program = find("azurite-queue", &[&program, "/usr/local/bin/azurite-queue", "/usr/bin/azurite-queue"])?;
    let sign = Command::new("node").args(["-e", SIGN]).output().map_err(|error| format!("node: {error}"))?;
    let signature = String::from_utf8_lossy(&sign.stdout).trim().to_owned();
    let port = free_port();
    let options = format!("--queueHost 127.0.0.1 --queuePort {port} --location data --skipApiVersionCheck --silent");
    let server = Server::start(&format!("exec {program} {options}"), port, Server::folder(), Vec::new())?;
    Ok((server, format!("http://127.0.0.1:{port}/devstoreaccount1/QUEUE?{signature}")))
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

//! Implements three operations for each broker: create the two queues, send a message and wait for the confirmation, and consume a queue.
//!
//! A program that supports only one broker does not need the enum [`Broker`].

use crate::Tasks;
use crate::options::{Options, queue_url};
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::{self, RetentionPolicy};
use async_nats::jetstream::{self};
use aws_config::BehaviorVersion;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_sqs::error::DisplayErrorContext;
use azure_core::http::Url;
use azure_storage_queue::QueueClient;
use azure_storage_queue::models::{QueueClientSendMessageOptions, QueueMessage};
use background_tasks_consumer::{AzureQueue, Delivery, Failure, JetStream, MemoryQueue, RabbitQueue, Source, SqsQueue, consumer};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The queue of mails that the workers must send. The server sends messages to the workers through this queue.
pub(crate) const MAILS: &str = "mails";
/// The queue of messages that report the status of each mail. The workers send messages to the server through this queue.
pub(crate) const NOTICES: &str = "notices";

/// The number of attempts after which a message moves to the dead-letter queue.
pub(crate) const MAX_ATTEMPTS: u32 = 20;

/// The number of messages of one queue that a process handles at the same time.
const CONCURRENCY: u16 = 4;

/// If the broker does not confirm the message within this time, `send` returns an error.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) enum Broker {
    /// The queues exist only in this process. All messages are lost when the process exits.
    Memory {
        mails: MemoryQueue,
        notices: MemoryQueue,
    },
    Nats(jetstream::Context),
    Rabbit {
        uri: String,
        link: Arc<Mutex<Option<(Connection, Channel)>>>,
    },
    Azure {
        account: Url,
        mails: Arc<QueueClient>,
        notices: Arc<QueueClient>,
    },
    Sqs {
        client: aws_sdk_sqs::Client,
        account: String,
    },
}

impl Broker {
    /// Connects to the broker of `QUEUE_URL`, and creates the queues that are missing.
    pub(crate) async fn connect(options: &Options, mails: MemoryQueue) -> Result<Self, String> {
        let url = queue_url();
        let scheme = url.split_once("://").map_or(&*url, |(scheme, _)| scheme);
        let broker = match scheme {
            "memory" if options.role.is_some() => {
                return Err("a queue in memory has no other processes: set QUEUE_URL, or pass no role".into());
            }
            "memory" => Self::Memory { mails, notices: MemoryQueue::new(options.lease) },
            "nats" => Self::Nats(jetstream::new(async_nats::connect(&url).await.map_err(failed("connect to NATS"))?)),
            "amqp" => Self::Rabbit { uri: url, link: Arc::default() },
            "http" | "https" => {
                let account = Url::parse(&url).map_err(failed("parse QUEUE_URL"))?;
                let [mails, notices] = [MAILS, NOTICES].map(|queue| client(&account, &full_name(queue)).map(Arc::new));
                Self::Azure { mails: mails?, notices: notices?, account }
            }
            "sqs+http" | "sqs+https" => {
                let account = Url::parse(url.trim_start_matches("sqs+")).map_err(failed("parse QUEUE_URL"))?;
                // `SqsQueue` needs a timeout that is longer than a call to `receive`, and shorter than the lease.
                let timeouts = TimeoutConfig::builder().operation_timeout(options.lease * 9 / 10).build();
                let config = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts);
                let config = config.http_client(aws_smithy_http_client::Builder::new().build_http());
                let config =
                    aws_sdk_sqs::config::Builder::from(&config.load().await).endpoint_url(account.origin().ascii_serialization());
                let client = aws_sdk_sqs::Client::from_conf(config.build());
                Self::Sqs { client, account: account.as_str().trim_end_matches('/').into() }
            }
            _ => return Err("QUEUE_URL must be memory, or a URL with nats, amqp, http, https, sqs+http or sqs+https".into()),
        };
        broker.create_queues().await?;
        Ok(broker)
    }

    pub(crate) fn is_in_memory(&self) -> bool {
        matches!(self, Self::Memory { .. })
    }

    async fn create_queues(&self) -> Result<(), String> {
        match self {
            Self::Memory { .. } => {}
            Self::Nats(context) => {
                let config = stream::Config {
                    name: "signups".into(),
                    subjects: vec!["signups.*".into()],
                    retention: RetentionPolicy::WorkQueue, // the stream deletes acknowledged messages
                    ..stream::Config::default()
                };
                context.get_or_create_stream(config).await.map_err(failed("create the stream"))?;
            }
            Self::Rabbit { uri, link } => {
                let opened = open(uri).await.map_err(failed("connect to RabbitMQ"))?;
                declare(&opened.1).await.map_err(failed("create the queues"))?;
                *link.lock().await = Some(opened);
            }
            Self::Azure { account, .. } => {
                for name in [MAILS, NOTICES].map(|queue| [full_name(queue), dead(&full_name(queue))]).as_flattened() {
                    match client(account, name)?.create(None).await {
                        Err(error) if error.http_status() != Some(azure_core::http::StatusCode::Conflict) => {
                            return Err(failed("create a queue")(error));
                        }
                        _ => {}
                    }
                }
            }
            Self::Sqs { client, .. } => {
                for name in [MAILS, NOTICES].map(|queue| [full_name(queue), dead(&full_name(queue))]).as_flattened() {
                    let create = client.create_queue().queue_name(name);
                    create.send().await.map_err(DisplayErrorContext).map_err(failed("create a queue"))?;
                }
            }
        }
        Ok(())
    }

    /// Sends a message, and waits until the broker has confirmed that it has stored the message.
    ///
    /// # Errors
    ///
    /// Returns an error if the broker has not confirmed the message within 5 seconds. The broker may have stored the message even if this
    /// function returns an error.
    pub(crate) async fn send(&self, queue: &str, id: &str, payload: String) -> Result<(), String> {
        let send = async {
            match self {
                Self::Memory { mails, notices } => {
                    let queue = if queue == MAILS { mails } else { notices };
                    queue.send_delivery(Delivery::new(payload).with_id(id));
                    Ok(())
                }
                Self::Nats(context) => {
                    let stored = context.publish(subject(queue), payload.into()).await.map_err(failed("send"))?;
                    stored.await.map(drop).map_err(failed("send"))
                }
                Self::Rabbit { uri, link } => {
                    let channel = {
                        let mut link = link.lock().await;
                        let open = match link.take() {
                            Some(open) if open.1.status().connected() => open,
                            _ => open(uri).await.map_err(failed("connect to RabbitMQ"))?,
                        };
                        link.insert(open).1.clone()
                    };
                    publish(&channel, queue, id, payload.as_bytes()).await
                }
                Self::Azure { mails, notices, .. } => {
                    let queue = if queue == MAILS { mails } else { notices };
                    let message = QueueMessage { message_text: Some(payload) };
                    // The value -1 means that the message never expires. By default, the service would delete it after 7 days.
                    let options = QueueClientSendMessageOptions {
                        message_time_to_live: Some(-1),
                        ..QueueClientSendMessageOptions::default()
                    };
                    let message = message.try_into().map_err(failed("send"))?;
                    queue.send_message(message, Some(options)).await.map(drop).map_err(failed("send"))
                }
                Self::Sqs { client, account } => {
                    let message = client.send_message().queue_url(format!("{account}/{}", full_name(queue))).message_body(payload);
                    message.send().await.map(drop).map_err(DisplayErrorContext).map_err(failed("send"))
                }
            }
        };
        timeout(SEND_TIMEOUT, send).await.unwrap_or_else(|_| Err("the broker does not respond".into()))
    }

    /// Handles each message of a queue in a task with the name `name`, until the registry shuts down.
    pub(crate) async fn serve<H, F>(
        &self,
        queue: &str,
        tasks: &Tasks,
        name: &'static str,
        lease: Duration,
        handler: H,
    ) -> Result<(), String>
    where
        H: Fn(Delivery) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        match self {
            Self::Memory { mails, notices } => {
                let queue = if queue == MAILS { mails } else { notices };
                start(queue.clone(), tasks, name, handler)
            }
            Self::Nats(context) => {
                let config = pull::Config {
                    durable_name: Some(queue.into()),
                    filter_subject: subject(queue),
                    ack_wait: lease,
                    max_deliver: -1, // no limit: at a limit, the server drops messages
                    // No limit: messages that wait for a retry count towards a limit, and block other messages.
                    max_ack_pending: -1,
                    ..pull::Config::default()
                };
                let stream = context.get_stream("signups").await.map_err(failed("find the stream"))?;
                let workers = stream.get_or_create_consumer(queue, config).await.map_err(failed("create a consumer"))?;
                let source = JetStream::new(context.clone(), workers, dead(&subject(queue))).map_err(|error| error.to_string())?;
                start(source, tasks, name, handler)
            }
            Self::Rabbit { uri, .. } => {
                let source = RabbitQueue::quorum(uri, queue, dead(queue)).prefetch(CONCURRENCY);
                source.connect().await.map_err(failed("connect to RabbitMQ"))?;
                start(source, tasks, name, handler)
            }
            Self::Azure { account, .. } => {
                let name_of_queue = full_name(queue);
                let source = AzureQueue::new(client(account, &name_of_queue)?, client(account, &dead(&name_of_queue))?, lease);
                start(source, tasks, name, handler)
            }
            Self::Sqs { client, account } => {
                let url = format!("{account}/{}", full_name(queue));
                let dead_letters = dead(&url);
                start(SqsQueue::new(client.clone(), url, dead_letters, lease), tasks, name, handler)
            }
        }
    }
}

fn start<S, H, F>(source: S, tasks: &Tasks, name: &'static str, handler: H) -> Result<(), String>
where
    S: Source,
    H: Fn(Delivery) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let consumer = consumer(source).concurrency(CONCURRENCY.into()).max_attempts(MAX_ATTEMPTS);
    let consumer = consumer.backoff(Duration::from_secs(1), Duration::from_mins(1)).timeout(Duration::from_mins(1));
    consumer.serve(tasks, name, handler).map_err(|reason| reason.to_string())
}

fn subject(queue: &str) -> String {
    format!("signups.{queue}")
}

fn full_name(queue: &str) -> String {
    format!("signups-{queue}")
}

fn dead(queue: &str) -> String {
    format!("{queue}-dead")
}

/// Returns a client for one queue of the account with this URL.
fn client(account: &Url, queue: &str) -> Result<QueueClient, String> {
    let mut url = account.clone();
    url.set_path(&format!("{}/{queue}", account.path().trim_end_matches('/')));
    QueueClient::new(url, None, None).map_err(failed("create a client"))
}

/// Connects to RabbitMQ, and opens a channel in confirm mode. In this mode, the broker confirms each message that it has stored.
async fn open(uri: &str) -> Result<(Connection, Channel), lapin::Error> {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

async fn declare(channel: &Channel) -> Result<(), lapin::Error> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for queue in [MAILS, NOTICES] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare(dead(queue).into(), durable, arguments.clone()).await?;
        // The broker drops a message that reaches this number of deliveries. The consumer's limit (`MAX_ATTEMPTS`) is lower, so the
        // consumer moves the message to the dead-letter queue first.
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(1000));
        channel.queue_declare(queue.into(), durable, arguments).await?;
    }
    Ok(())
}

async fn publish(channel: &Channel, queue: &str, id: &str, payload: &[u8]) -> Result<(), String> {
    let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(id.into()); // 2 means persistent
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published = channel.basic_publish("".into(), queue.into(), options, payload, properties).await.map_err(failed("send"))?;
    match published.await.map_err(failed("send"))? {
        Confirmation::Ack(None) => Ok(()),
        _ => Err("the broker has not stored the message".into()),
    }
}

fn failed<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("cannot {what}: {error}")
}

//! Pulsar's client alone, without Herald: what Herald is held against.

use std::collections::VecDeque;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use herald_crds::names::{self, Topic};
use pulsar::{
    ConsumerOptions, Producer, ProducerOptions, Pulsar, SubType, TokioExecutor, producer,
};

/// A connection, and a topic of one partition.
pub struct Raw {
    client: Pulsar<TokioExecutor>,
    partition: String,
    subscription: &'static str,
}

impl Raw {
    /// Connects with a token.
    pub async fn new(url: &str, token: &str, tenant: &str, topic: &Topic) -> anyhow::Result<Self> {
        let client = Pulsar::builder(url.to_owned(), TokioExecutor)
            .with_auth(pulsar::Authentication {
                name: "token".to_owned(),
                data: token.as_bytes().to_vec(),
            })
            .with_outbound_channel_size(1_024)
            .build();
        Ok(Self {
            client: Box::pin(client).await.context("cannot connect")?,
            partition: format!("persistent://{tenant}/{topic}-partition-0"),
            subscription: names::subscription(topic).context("a topic without a subscription")?,
        })
    }

    /// A producer that does not batch.
    pub async fn producer(&self) -> anyhow::Result<Producer<TokioExecutor>> {
        let options = ProducerOptions {
            block_queue_if_full: true,
            ..ProducerOptions::default()
        };
        let building = self.client.producer().with_topic(&self.partition);
        let building = building.with_options(options).build();
        Box::pin(building).await.context("cannot make a producer")
    }

    /// Publishes `count` messages of `size` bytes, of which so many wait for their receipts at a time, and waits for all.
    pub async fn publish(&self, count: usize, size: usize, at_a_time: usize) -> anyhow::Result<()> {
        let mut producer = self.producer().await?;
        let mut receipts: VecDeque<producer::SendFuture> = VecDeque::with_capacity(at_a_time);
        for number in 0..count {
            if receipts.len() == at_a_time
                && let Some(oldest) = receipts.pop_front()
            {
                oldest.await.context("no receipt")?;
            }
            let message = producer::Message {
                payload: vec![b'x'; size],
                partition_key: Some(format!("{number:x}")),
                ..producer::Message::default()
            };
            let sending = Box::pin(producer.send_non_blocking(message));
            receipts.push_back(sending.await.context("cannot publish")?);
        }
        for receipt in receipts {
            receipt.await.context("no receipt")?;
        }
        Ok(())
    }

    /// A consumer that asks for so many messages at a time.
    pub async fn consumer(
        &self,
        sub_type: SubType,
        prefetch: u32,
    ) -> anyhow::Result<pulsar::Consumer<Vec<u8>, TokioExecutor>> {
        let building = self
            .client
            .consumer()
            .with_topic(&self.partition)
            .with_subscription(self.subscription)
            .with_subscription_type(sub_type)
            .with_batch_size(prefetch)
            .with_options(ConsumerOptions::default().with_receiver_queue_size(prefetch))
            .build();
        Box::pin(building).await.context("cannot subscribe")
    }

    /// Receives and acknowledges `count` messages, one by one.
    pub async fn consume(
        &self,
        count: usize,
        sub_type: SubType,
        prefetch: u32,
    ) -> anyhow::Result<()> {
        let mut consumer = self.consumer(sub_type, prefetch).await?;
        for _ in 0..count {
            let message = consumer.try_next().await.context("cannot receive")?;
            let message = message.context("the consumer ended")?;
            consumer.ack(&message).await.context("cannot acknowledge")?;
        }
        Ok(())
    }
}

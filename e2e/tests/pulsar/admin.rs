//! The admin API of a real Pulsar.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use herald_crds::names;
use herald_dispatcher::broker::pulsar::PulsarBroker;
use herald_dispatcher::broker::{Broker as _, Outgoing};
use herald_operator::pulsar_admin::{Action, Made, TopicName};

use crate::subject::{ROLE, settings, shared, tenant};

#[tokio::test]
async fn everything_can_be_asked_for_again() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 2).await;
    let admin = pulsar.admin().unwrap();
    let clusters = admin.clusters().await.unwrap();
    let made = admin.create_tenant(&tenant, &clusters).await.unwrap();
    assert_eq!(made, Made::Existed);
    admin
        .provide_requests(&tenant, &clusters, 2, Some(ROLE))
        .await
        .unwrap();
    let namespace = format!("{tenant}/herald-system");
    let topics: BTreeSet<_> = admin
        .topics(&namespace)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let wanted = names::all_requests().map(|topic| topic.name().to_owned());
    assert_eq!(topics, wanted.collect());
    assert!(admin.topics("nobody/nothing").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_namespace_says_whose_it_is_and_who_may_use_it() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let admin = pulsar.admin().unwrap();
    let namespace = format!("{tenant}/shop");
    let uid = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let uids = BTreeMap::from([uid("cluster-uid", "one"), uid("namespace-uid", "two")]);
    admin.set_properties(&namespace, &uids).await.unwrap();
    assert_eq!(admin.properties(&namespace).await.unwrap(), Some(uids));
    let missing = admin.properties(&format!("{tenant}/missing")).await;
    assert_eq!(missing.unwrap(), None);

    let both = BTreeSet::from([Action::Produce, Action::Consume]);
    let permissions = admin.permissions(&namespace).await.unwrap();
    assert_eq!(permissions.get(ROLE), Some(&both));
    let topic = TopicName::new(&tenant, &names::events("shop/mail"));
    admin
        .grant_topic(&topic, "pod", &[Action::Consume])
        .await
        .unwrap();
    let permissions = admin.topic_permissions(&topic).await.unwrap();
    assert_eq!(permissions.get("pod"), Some(&[Action::Consume].into()));
    for _ in 0..2 {
        admin.revoke_topic(&topic, "pod").await.unwrap();
        admin.revoke(&namespace, ROLE).await.unwrap();
    }
    assert!(admin.permissions(&namespace).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_topic_grows_says_how_it_fares_and_goes() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let admin = pulsar.admin().unwrap();
    let topic = names::deliveries("shop/mail", herald_crds::Priority::High);
    let name = TopicName::new(&tenant, &topic);
    for (wanted, there) in [(1, 1), (3, 3), (2, 3)] {
        admin.create_topic(&name, wanted).await.unwrap();
        assert_eq!(admin.partitions(&name).await.unwrap(), Some(there));
    }
    let broker = PulsarBroker::new(settings(pulsar, &tenant));
    let messages = (0..30).map(|n: u32| Outgoing::at_once(Bytes::from(n.to_string())));
    broker.publish(&topic, messages.collect()).await.unwrap();
    let stats = admin.stats(&name).await.unwrap().unwrap();
    let deliver = &stats.subscriptions[names::DELIVER_SUBSCRIPTION];
    // Also the new partitions have the subscription: otherwise their messages would be gone.
    assert_eq!((deliver.msg_backlog, deliver.msg_delayed), (30, 0));
    assert!(stats.msg_in_counter == 30 && stats.storage_size > 0);
    for _ in 0..2 {
        admin.delete_topic(&name).await.unwrap();
    }
    assert_eq!(admin.partitions(&name).await.unwrap(), None);
    assert_eq!(admin.stats(&name).await.unwrap(), None);
}

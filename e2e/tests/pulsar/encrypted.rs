//! TLS: whom to trust is what the CA file says.

use std::time::Duration;

use bytes::Bytes;
use herald_crds::names;
use herald_dispatcher::broker::pulsar::{PulsarBroker, Settings};
use herald_dispatcher::broker::{Broker as _, Outgoing};
use herald_e2e::environment::{Environment, Options};
use herald_e2e::process::free_port;
use herald_operator::pulsar_admin::{self, PulsarAdmin};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::subject::{settings, tenant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_the_ca_file_says_whom_to_trust() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = write(
        "ca.pem",
        authority.self_signed(&authority_key).unwrap().pem(),
    );
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let broker = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = write("broker.pem", broker.signed_by(&key, &issuer).unwrap().pem());
    let key = write("key.pem", key.serialize_pem());

    let (service, web) = (free_port().unwrap(), free_port().unwrap());
    let changes = [
        ("brokerServicePortTls", service.to_string()),
        ("webServicePortTls", web.to_string()),
        ("tlsCertificateFilePath", certificate.display().to_string()),
        ("tlsKeyFilePath", key.display().to_string()),
    ];
    let environment = Environment::start_own(&Options {
        postgres: false,
        broker: changes.map(|(key, value)| (key.to_owned(), value)).into(),
        ..Options::default()
    })
    .await
    .unwrap();
    let pulsar = environment.pulsar().unwrap();
    let tenant = tenant(pulsar, 1).await;

    let admin = |ca| {
        let settings = pulsar_admin::Settings {
            url: format!("https://127.0.0.1:{web}"),
            token: pulsar_admin::Token::Fixed(pulsar.admin_token().to_owned()),
            ca,
            timeout: Duration::from_secs(60),
        };
        PulsarAdmin::new(settings).unwrap()
    };
    admin(Some(ca.clone())).check_health().await.unwrap();
    let error = admin(None).check_health().await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");

    let publish = async |ca| {
        let broker = PulsarBroker::new(Settings {
            url: format!("pulsar+ssl://127.0.0.1:{service}"),
            ca,
            ..settings(pulsar, &tenant)
        });
        let message = Outgoing::at_once(Bytes::from_static(b"x"));
        broker
            .publish(&names::events("shop/mail"), vec![message])
            .await
    };
    publish(Some(ca)).await.unwrap();
    let error = publish(None).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

//! Tokens and RBAC, asked of a scripted API server, and of nobody.

use std::sync::Mutex;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::remembered::tests::Standing;
use super::*;
use crate::access::{Denied, rights};
use crate::api::auth::still_may;
use crate::cluster::scripted::ApiServer;

const ORDERS: &str = "system:serviceaccount:shop:orders";

/// Signs tokens as a cluster does.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, pair.as_ref(), &random).unwrap())
    }

    fn jwks(&self) -> Value {
        let point = self.0.public_key().as_ref();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..]));
        let of_another_kind = json!({"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "2"});
        json!({"keys": [of_another_kind, {"kty": "EC", "crv": "P-256", "kid": "1", "x": x, "y": y}]})
    }

    /// A token with these claims beside the usual ones.
    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = json!({
            "iss": "https://cluster.example",
            "sub": ORDERS,
            "aud": ["herald"],
            "exp": Timestamp::now().as_second() + 3600,
            "nbf": Timestamp::now().as_second(),
            "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "orders", "uid": "u-1"}},
        });
        change(&mut claims);
        let part = |value: &Value| BASE64.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({"alg": "ES256", "kid": "1"})),
            part(&claims)
        );
        let signature = self
            .0
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", BASE64.encode(signature.as_ref()))
    }
}

async fn server() -> (ApiServer, Signer) {
    let (server, signer) = (ApiServer::start().await, Signer::new());
    server.sign_with(&signer.jwks());
    (server, signer)
}

fn access(server: &ApiServer) -> KubernetesAccess {
    KubernetesAccess::new(server.client(), AUDIENCE, FixedKeys::default())
}

/// Once the signing keys were fetched.
async fn with_keys(access: &KubernetesAccess) {
    while access.signing.read().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn rejected(result: Result<Sender, Unknown>) -> String {
    match result {
        Err(Unknown::Reject { reason }) => reason.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_for_herald_says_who_calls_and_rbac_what_it_may_do() {
    let (server, signer) = server().await;
    let token = signer.token(|_| {});
    server.know(&token, ORDERS, &["system:serviceaccounts"]);
    server.allow(&format!("{ORDERS} create notifications shop"));
    server.allow(&format!("{ORDERS} use notificationtemplates shop welcome"));
    server.allow(&format!("{ORDERS} create notifications/cancel shop"));
    let access = access(&server);
    let sender = access.sender(&token).await.unwrap();
    assert_eq!(&*sender.name, ORDERS);
    let may = async |right: &Right, namespace: &str, name: &str| {
        sender.require(right, namespace, name).await.is_ok()
    };
    assert!(may(&rights::SEND, "shop", "").await);
    assert!(!may(&rights::SEND, "office", "").await);
    assert!(may(&rights::USE_TEMPLATE, "shop", "welcome").await);
    assert!(!may(&rights::USE_TEMPLATE, "shop", "code").await);
    assert!(may(&rights::CANCEL, "shop", "").await);
    let denied = sender
        .require(&rights::PRIORITIZE, "shop", "")
        .await
        .unwrap_err();
    assert!(matches!(denied, Denied::LackPermission { .. }));
    let said = denied.to_string();
    for part in [
        ORDERS,
        "create notifications.herald.dev/prioritize",
        "namespace shop",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn the_api_server_is_asked_once_for_many_calls() {
    let (server, signer) = server().await;
    let token = signer.token(|_| {});
    server.know(&token, ORDERS, &[]);
    server.allow(&format!("{ORDERS} create notifications shop"));
    let access = access(&server);
    for _ in 0..10 {
        let sender = access.sender(&token).await.unwrap();
        sender.require(&rights::SEND, "shop", "").await.unwrap();
        sender
            .require(&rights::SEND, "office", "")
            .await
            .unwrap_err();
    }
    assert_eq!(server.asked("tokenreviews"), 1);
    assert_eq!(server.asked("subjectaccessreviews"), 2);
}

#[tokio::test]
async fn a_token_that_cannot_be_good_is_refused_without_asking() {
    let (server, signer) = server().await;
    let access = access(&server);
    let for_others = signer.token(|claims| claims["aud"] = json!("https://cluster.example"));
    let said = rejected(access.sender(&for_others).await);
    assert!(
        said.contains("https://cluster.example") && said.contains("--audience herald"),
        "{said}"
    );
    let expired = signer.token(|claims| claims["exp"] = json!(1_000_000));
    assert!(rejected(access.sender(&expired).await).contains("expired"));
    for garbage in ["hk_abc", "a.b.c", "..", ""] {
        assert!(rejected(access.sender(garbage).await).contains("kubectl create token"));
    }
    assert_eq!(server.asked("tokenreviews"), 0);
}

#[tokio::test]
async fn a_token_that_says_it_is_of_the_cluster_and_is_not_is_refused_without_asking() {
    let (server, signer) = server().await;
    let access = access(&server);
    with_keys(&access).await;
    let said = rejected(access.sender(&Signer::new().token(|_| {})).await);
    assert!(said.contains("not signed by this cluster"), "{said}");
    assert_eq!(server.asked("tokenreviews"), 0);
    // One of another issuer may be one that the API server knows.
    let of_another = signer.token(|claims| claims["iss"] = json!("https://people.example"));
    rejected(access.sender(&of_another).await);
    assert_eq!(server.asked("tokenreviews"), 1);
}

#[tokio::test]
async fn a_token_that_the_cluster_does_not_know_is_refused_and_not_asked_about_again_at_once() {
    let (server, signer) = server().await;
    let access = access(&server);
    with_keys(&access).await;
    // Rightly signed, but its account is gone, say.
    let token = signer.token(|_| {});
    for _ in 0..3 {
        rejected(access.sender(&token).await);
    }
    assert_eq!(server.asked("tokenreviews"), 1);
}

#[tokio::test]
async fn while_the_api_server_is_away_a_new_token_is_checked_against_the_clusters_keys() {
    let (server, signer) = server().await;
    let access = access(&server);
    with_keys(&access).await;
    server.go_away().await;
    let sender = access.sender(&signer.token(|_| {})).await.unwrap();
    assert_eq!(&*sender.name, ORDERS);
    // What was never decided cannot be told.
    let denied = sender.require(&rights::SEND, "shop", "").await.unwrap_err();
    assert!(matches!(denied, Denied::Ask { .. }), "{denied:?}");
    let cannot_tell = async |token: String| {
        let unknown = access.sender(&token).await.unwrap_err();
        assert!(matches!(unknown, Unknown::Ask { .. }), "{unknown:?}");
    };
    cannot_tell(signer.token(|claims| claims["iss"] = json!("https://other.example"))).await;
    cannot_tell(signer.token(|claims| claims["sub"] = json!("alice"))).await;
    cannot_tell(signer.token(|claims| claims["exp"] = Value::Null)).await;
    cannot_tell(signer.token(|claims| claims["nbf"] = json!(Timestamp::now().as_second() + 600)))
        .await;
    let token = signer.token(|_| {});
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let none = BASE64.encode(json!({"alg": "none", "kid": "1"}).to_string());
    let unsigned = BASE64.encode("no signature");
    for forged in [
        Signer::new().token(|_| {}),
        format!("{none}.{claims}.{signature}"),
        format!("{header}.{claims}.{unsigned}"),
    ] {
        assert!(rejected(access.sender(&forged).await).contains("not signed"));
    }
}

#[tokio::test]
async fn decisions_from_before_the_api_server_went_away_count_on() {
    let (server, signer) = server().await;
    let token = signer.token(|_| {});
    server.know(&token, ORDERS, &[]);
    server.allow(&format!("{ORDERS} create notifications shop"));
    let access = access(&server);
    let sender = access.sender(&token).await.unwrap();
    sender.require(&rights::SEND, "shop", "").await.unwrap();
    server.go_away().await;
    let sender = access.sender(&token).await.unwrap();
    sender.require(&rights::SEND, "shop", "").await.unwrap();
}

#[tokio::test]
async fn decisions_count_for_every_token_of_an_account_also_one_that_only_its_signature_speaks_for()
{
    let (server, signer) = server().await;
    let groups = [
        "system:serviceaccounts",
        "system:serviceaccounts:shop",
        "system:authenticated",
    ];
    let [first, second, unseen] =
        [1, 2, 3].map(|id| signer.token(|claims| claims["jti"] = id.into()));
    server.know(&first, ORDERS, &groups);
    server.know(&second, ORDERS, &groups);
    server.allow(&format!("{ORDERS} create notifications shop"));
    let access = access(&server);
    with_keys(&access).await;
    for token in [&first, &second] {
        let sender = access.sender(token).await.unwrap();
        sender.require(&rights::SEND, "shop", "").await.unwrap();
    }
    assert_eq!(server.asked("subjectaccessreviews"), 1);
    server.go_away().await;
    let sender = access.sender(&unseen).await.unwrap();
    sender.require(&rights::SEND, "shop", "").await.unwrap();
}

#[tokio::test]
async fn a_schedule_may_do_what_its_service_account_may() {
    let (server, _) = server().await;
    server.allow("system:serviceaccount:shop:digest create notifications shop");
    let access = access(&server);
    let of = |name| Sender {
        name: "schedule:weekly".into(),
        rights: access.service_account("shop", name),
    };
    of("digest")
        .require(&rights::SEND, "shop", "")
        .await
        .unwrap();
    of("default")
        .require(&rights::SEND, "shop", "")
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_key_of_the_environment_is_known_beside_the_tokens() {
    let (server, _) = server().await;
    let fixed = FixedKeys::of_environment(Some("hk_setup"));
    let access = KubernetesAccess::new(server.client(), AUDIENCE, fixed);
    let sender = access.sender("hk_setup").await.unwrap();
    sender.require(&rights::SEND, "shop", "").await.unwrap();
    rejected(access.sender("hk_other").await);
}

/// Answers at once; yes or no or not at all, as it was told. Of a namespace called `unending` nobody ever hears.
#[derive(Default)]
struct Oracle {
    allows: Mutex<Option<bool>>,
}

impl Oracle {
    fn say(&self, allows: Option<bool>) {
        *self.allows.lock().unwrap() = allows;
    }
}

#[async_trait]
impl Reviews for Oracle {
    async fn token(&self, _: &str, _: &str) -> Result<Reviewed, CannotTell> {
        let identity = Identity::of_service_account("shop", "orders");
        self.keys()
            .await
            .map(|_| Reviewed::Known(Arc::new(identity)))
    }

    async fn access(
        &self,
        _: &Identity,
        _: &Right,
        namespace: &str,
        _: &str,
    ) -> Result<bool, CannotTell> {
        if namespace == "unending" {
            std::future::pending::<()>().await;
        }
        self.allows.lock().unwrap().ok_or(CannotTell::Away {
            reason: "away".into(),
        })
    }

    async fn keys(&self) -> Result<Keys, CannotTell> {
        match *self.allows.lock().unwrap() {
            Some(_) => Ok(Keys::default()),
            None => Err(CannotTell::Away {
                reason: "away".into(),
            }),
        }
    }
}

/// An oracle that allows everything, the time, and who asks it.
fn allowing() -> (Arc<Oracle>, Standing, KubernetesAccess) {
    let oracle = Arc::new(Oracle::default());
    oracle.say(Some(true));
    let time = Standing::new();
    let access = KubernetesAccess::with(
        Arc::clone(&oracle) as _,
        AUDIENCE,
        FixedKeys::default(),
        &time.clock(),
    );
    (oracle, time, access)
}

#[tokio::test]
async fn a_yes_is_used_for_a_quarter_of_an_hour_without_an_answer_and_never_against_a_no() {
    let (oracle, time, access) = allowing();
    let token = Signer::new().token(|_| {});
    let may_send = async || -> Result<(), Option<Denied>> {
        let sender = access.sender(&token).await.map_err(|_| None::<Denied>)?;
        let asked = sender.require(&rights::SEND, "shop", "").await;
        asked.map_err(Some)
    };
    let minutes = |minutes| time.move_on(Duration::from_mins(minutes));
    assert_eq!(may_send().await, Ok(()));
    oracle.say(None);
    minutes(14);
    assert_eq!(may_send().await, Ok(()));
    minutes(2);
    assert_eq!(may_send().await, Err(None));
    // Back: what is answered then counts, and a no from the minute on in which it is heard.
    oracle.say(Some(true));
    assert_eq!(may_send().await, Ok(()));
    oracle.say(Some(false));
    minutes(1);
    assert!(matches!(
        may_send().await,
        Err(Some(Denied::LackPermission { .. }))
    ));
    oracle.say(None);
    minutes(5);
    assert!(matches!(
        may_send().await,
        Err(Some(Denied::LackPermission { .. }))
    ));
}

#[tokio::test]
async fn a_stream_goes_on_for_a_quarter_of_an_hour_without_an_answer_and_no_longer() {
    let (oracle, time, access) = allowing();
    let token = Signer::new().token(|_| {});
    let right = &rights::LIST_NOTIFICATIONS;
    let goes_on = async || still_may(&access, &token, right, "shop").await;
    assert!(goes_on().await);
    oracle.say(None);
    time.move_on(Duration::from_mins(14));
    assert!(goes_on().await);
    time.move_on(Duration::from_mins(1));
    assert!(!goes_on().await);
}

#[tokio::test]
async fn who_asks_too_much_keeps_nobody_else_waiting_and_nothing_that_may_have_been_taken_from_it()
{
    let (_, time, access) = allowing();
    let of = |name: &str| Sender {
        name: name.into(),
        rights: access.service_account("shop", name),
    };
    let (orders, others) = (of("orders"), of("others"));
    orders.require(&rights::SEND, "shop", "").await.unwrap();
    let mut under_way = tokio::task::JoinSet::new();
    for n in 0..IN_LINE {
        let orders = orders.clone();
        under_way.spawn(async move {
            let name = n.to_string();
            let asked = orders.require(&rights::USE_TEMPLATE, "unending", &name);
            asked.await.is_ok()
        });
    }
    let who = Identity::of_service_account("shop", "orders").digest();
    while access.authority.turns.in_line(&who) < IN_LINE {
        tokio::task::yield_now().await;
    }
    orders.require(&rights::SEND, "shop", "").await.unwrap();
    time.move_on(YES);
    others.require(&rights::SEND, "shop", "").await.unwrap();
    let asked = orders.require(&rights::SEND, "shop", "").await;
    assert_eq!(asked, Err(Denied::AskTooMuch));
    under_way.shutdown().await;
    orders.require(&rights::SEND, "shop", "").await.unwrap();
}

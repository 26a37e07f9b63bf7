//! The calls about people over real HTTP, against the embedded store.

mod server;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use self::server::{Server, json_of};
use crate::api::described;
use crate::store::contract::stages::{planned, request, row};
#[tokio::test]
async fn a_recipient_is_put_got_changed_and_deleted() {
    let server = Server::start().await;
    let alice = json!({
        "locale": "ko",
        "addresses": {"email": "alice@shop.example"},
        "labels": {"tier": "vip", "trial": "yes"},
    });
    let created = server.put("recipients/alice", &alice).await;
    let tag = created.headers()["etag"].clone();
    let body = json_of(created, StatusCode::CREATED).await;
    assert_eq!(body["id"], "alice");
    let again = server.put("recipients/alice", &alice).await;
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(again.headers()["etag"], tag, "nothing changed");
    assert_eq!(
        json_of(server.get("recipients/alice").await, StatusCode::OK).await,
        body
    );

    let patch = json!({"addresses": {"phone": "+821012345678"}, "labels": {"trial": null}});
    let patched = server
        .request(Method::PATCH, "recipients/alice")
        .header("if-match", &tag)
        .json(&patch)
        .send()
        .await
        .unwrap();
    let body = json_of(patched, StatusCode::OK).await;
    assert_eq!(body["addresses"]["email"], "alice@shop.example");
    assert_eq!(body["addresses"]["phone"], "+821012345678");
    assert_eq!(body["labels"], json!({"tier": "vip"}));

    for method in [Method::PATCH, Method::PUT] {
        let stale = server
            .request(method, "recipients/alice")
            .header("if-match", &tag)
            .json(&alice)
            .send()
            .await
            .unwrap();
        let body = json_of(stale, StatusCode::PRECONDITION_FAILED).await;
        assert_eq!(body["type"], "/problems/changed");
    }
    let create_only = server
        .request(Method::PUT, "recipients/alice")
        .header("if-none-match", "*")
        .json(&alice)
        .send()
        .await
        .unwrap();
    assert_eq!(create_only.status(), StatusCode::PRECONDITION_FAILED);

    assert_eq!(
        server.delete("recipients/alice").await,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        server.delete("recipients/alice").await,
        StatusCode::NOT_FOUND
    );
    let gone = server.get("recipients/alice").await;
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_is_wrong_with_a_recipient_is_named_with_its_place() {
    let server = Server::start().await;
    for (body, pointer) in [
        (
            json!({"addresses": {"email": "nowhere"}}),
            "/addresses/email",
        ),
        (json!({"adresses": {}}), "/adresses"),
        (json!({"id": "bob"}), "/id"),
        (json!({"timeZone": "Mars/Olympus"}), "/timeZone"),
        (json!({"addresses": {"phone": 7}}), "/addresses/phone"),
    ] {
        let answer = server.put("recipients/alice", &body).await;
        let problem = json_of(answer, StatusCode::UNPROCESSABLE_ENTITY).await;
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    let answer = server.put("recipients/no%20id", &json!({})).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn recipients_are_listed_by_prefix_address_and_label() {
    let server = Server::start().await;
    for (id, tier) in [("alan", "vip"), ("alice", "basic"), ("bob", "vip")] {
        let body =
            json!({"addresses": {"email": format!("{id}@shop.example")}, "labels": {"tier": tier}});
        let path = format!("recipients/{id}");
        assert_eq!(server.put(&path, &body).await.status(), StatusCode::CREATED);
    }
    for (query, expected) in [
        ("", vec!["alan", "alice", "bob"]),
        ("?q=al", vec!["alan", "alice"]),
        ("?q=bob@shop.example", vec!["bob"]),
        ("?label=tier%3Dvip", vec!["alan", "bob"]),
        ("?q=al&label=tier%3Dvip", vec!["alan"]),
    ] {
        let page = server.get(&format!("recipients{query}")).await;
        let page = json_of(page, StatusCode::OK).await;
        let ids: Vec<_> = page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, expected, "{query}");
    }
    for wrong in ["?limit=0", "?cursor=!", "?label=tier", "?lable=x"] {
        let answer = server.get(&format!("recipients{wrong}")).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{wrong}");
    }
}

#[tokio::test]
async fn an_import_with_broken_lines_in_the_middle_takes_all_others() {
    let server = Server::start().await;
    let mut lines: Vec<String> = (0..1200)
        .map(|n| {
            json!({"id": format!("p{n}"), "addresses": {"email": format!("p{n}@shop.example")}})
                .to_string()
        })
        .collect();
    lines[600] = r#"{"id": "p600", "addresses": {"email": "#.to_owned();
    lines[700] = r#"{"id": "p700", "addresses": {"email": "nowhere"}}"#.to_owned();
    let answer = server
        .import("?group=vip", "application/x-ndjson", lines.join("\n"))
        .await;
    let report = json_of(answer, StatusCode::OK).await;
    assert_eq!(report["created"], 1198);
    assert_eq!(report["updated"], 0);
    assert_eq!(report["failed"], 2);
    assert_eq!(report["addedToGroup"], 1198);
    assert_eq!(report["errors"][0]["line"], 601);
    assert_eq!(report["errors"][1]["line"], 701);
    let problem = report["errors"][1]["problem"].as_str().unwrap();
    assert!(
        problem.starts_with("/addresses/email: must be"),
        "{problem}"
    );
    assert_eq!(server.all("groups/vip/members", 1000).await.len(), 1198);
    assert_eq!(server.all("recipients", 1000).await.len(), 1198);
}

#[tokio::test]
async fn an_import_of_csv_reads_quotes_and_refuses_a_header_that_it_does_not_know() {
    let server = Server::start().await;
    let csv = "id,email,timeZone,label.name\r\n\
               alice,alice@shop.example,Asia/Seoul,\"Kim, \"\"Ali\"\"\"\r\n\
               bob,,,\"Bob\r\n\
               carol,,,Carol\r\n";
    let answer = server
        .import("", "text/csv; charset=utf-8", csv.to_owned())
        .await;
    let report = json_of(answer, StatusCode::OK).await;
    assert_eq!(
        (&report["created"], &report["failed"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(report["errors"][0]["line"], 3);
    assert_eq!(report.get("addedToGroup"), None);
    let alice = json_of(server.get("recipients/alice").await, StatusCode::OK).await;
    assert_eq!(alice["labels"]["name"], "Kim, \"Ali\"");
    assert_eq!(alice["timeZone"], "Asia/Seoul");

    let answer = server
        .import("", "text/csv", "id,mail\na,b\n".to_owned())
        .await;
    let problem = json_of(answer, StatusCode::UNPROCESSABLE_ENTITY).await;
    assert!(
        problem["detail"].as_str().unwrap().contains("\"mail\""),
        "{problem}"
    );
    let answer = server.import("", "application/json", "{}".to_owned()).await;
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn only_managed_groups_have_members_over_http() {
    let server = Server::start().await;
    let nobody = || "{\"id\":\"alice\"}".to_owned();
    for (group, expected) in [
        ("board", StatusCode::CONFLICT),
        ("none", StatusCode::NOT_FOUND),
    ] {
        let members = format!("groups/{group}/members");
        let one = format!("{members}/alice");
        assert_eq!(server.put(&one, &Value::Null).await.status(), expected);
        assert_eq!(server.delete(&one).await, expected);
        assert_eq!(server.get(&members).await.status(), expected);
        let body = json!({"add": ["alice"]});
        let batch = server.post(&format!("{members}/batch"), &body).await;
        assert_eq!(batch.status(), expected);
        let query = format!("?group={group}");
        let import = server.import(&query, "application/x-ndjson", nobody());
        assert_eq!(import.await.status(), expected);
    }
    let missing = server.get("recipients/alice").await;
    assert_eq!(
        missing.status(),
        StatusCode::NOT_FOUND,
        "nothing was imported"
    );
}

#[tokio::test]
async fn paging_through_2500_members_meets_each_once() {
    let server = Server::start().await;
    let mut ids: Vec<String> = (0..2500).map(|n| format!("p{n}")).collect();
    let answer = server
        .post("groups/vip/members/batch", &json!({"add": ids}))
        .await;
    let changed = json_of(answer, StatusCode::OK).await;
    assert_eq!(changed, json!({"added": 2500, "removed": 0}));
    ids.sort();
    assert_eq!(server.all("groups/vip/members", 300).await, ids);

    let answer = server
        .post(
            "groups/vip/members/batch",
            &json!({"add": ["new"], "remove": ["p1", "p2", "who"]}),
        )
        .await;
    let changed = json_of(answer, StatusCode::OK).await;
    assert_eq!(changed, json!({"added": 1, "removed": 2}));
    let one = "groups/vip/members/p1";
    assert_eq!(
        server.put(one, &Value::Null).await.status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(server.delete(one).await, StatusCode::NO_CONTENT);
    assert_eq!(server.delete(one).await, StatusCode::NOT_FOUND);
    assert_eq!(server.all("groups/vip/members", 1000).await.len(), 2499);
}

#[tokio::test]
async fn a_batch_that_is_wrong_anywhere_changes_nothing() {
    let server = Server::start().await;
    let many: Vec<String> = (0..10_001).map(|n| format!("p{n}")).collect();
    for (body, pointer) in [
        (json!({"add": many}), ""),
        (json!({"add": ["ok", "not ok"]}), "/add/1"),
        (
            json!({"add": ["a", "b"], "remove": ["c", "b"]}),
            "/remove/1",
        ),
    ] {
        let answer = server.post("groups/vip/members/batch", &body).await;
        let problem = json_of(answer, StatusCode::UNPROCESSABLE_ENTITY).await;
        assert_eq!(problem["errors"][0]["pointer"], pointer);
    }
    assert!(server.all("groups/vip/members", 10).await.is_empty());
}

#[tokio::test]
async fn an_address_is_suppressed_and_taken_off_again() {
    let server = Server::start().await;
    let hook = "suppressions/webhook/https%3A%2F%2Fhooks.shop.example%2Fa%3Fb%3Dc";
    let mail = "suppressions/email/alice@shop.example";
    let put = json_of(
        server.put(hook, &json!({"reason": "left us"})).await,
        StatusCode::OK,
    )
    .await;
    assert_eq!(put["address"], "https://hooks.shop.example/a?b=c");
    let bare = server.request(Method::PUT, mail).send().await.unwrap();
    let put = json_of(bare, StatusCode::OK).await;
    assert_eq!(put["reason"], "opted-out");
    let got = json_of(server.get(mail).await, StatusCode::OK).await;
    assert_eq!(got, put);
    let listed = server.all("suppressions", 1).await;
    let addresses: Vec<_> = listed.iter().map(|entry| &entry["address"]).collect();
    assert_eq!(
        addresses,
        ["alice@shop.example", "https://hooks.shop.example/a?b=c"]
    );
    assert_eq!(server.delete(mail).await, StatusCode::NO_CONTENT);
    assert_eq!(server.delete(mail).await, StatusCode::NOT_FOUND);
    assert_eq!(server.get(mail).await.status(), StatusCode::NOT_FOUND);
    for wrong in [
        "email/nowhere",
        "sms/alice@shop.example",
        "inbox/alice",
        "fax/1",
    ] {
        let answer = server
            .put(&format!("suppressions/{wrong}"), &json!({}))
            .await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{wrong}");
    }
}

#[tokio::test]
async fn a_person_is_shown_what_was_sent_to_it() {
    let server = Server::start().await;
    let request = request("1");
    let rows = [row(&request.id, "alice"), row(&request.id, "bob")];
    planned(&*server.store, &request, &rows).await;
    let shown = server.all("recipients/alice/notifications", 10).await;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0]["notification"], request.id.to_string());
    assert_eq!(shown[0]["state"], "queued");
}

#[tokio::test]
async fn a_key_does_what_its_scopes_say_and_no_more() {
    let server = Server::start().await;
    let calls = [
        (Method::GET, "recipients", "reader"),
        (Method::GET, "recipients/alice", "reader"),
        (Method::PUT, "recipients/alice", "writer"),
        (Method::PATCH, "recipients/alice", "writer"),
        (Method::DELETE, "recipients/alice", "writer"),
        (Method::POST, "recipients/import", "writer"),
        (Method::GET, "recipients/alice/notifications", "writer"),
        (Method::GET, "groups/vip/members", "reader"),
        (Method::PUT, "groups/vip/members/alice", "writer"),
        (Method::DELETE, "groups/vip/members/alice", "writer"),
        (Method::POST, "groups/vip/members/batch", "writer"),
        (Method::GET, "suppressions", "reader"),
        (Method::GET, "suppressions/email/a@shop.example", "reader"),
        (Method::PUT, "suppressions/email/a@shop.example", "writer"),
        (
            Method::DELETE,
            "suppressions/email/a@shop.example",
            "writer",
        ),
    ];
    for (method, path, least) in calls {
        let call = async |key: Option<&str>| {
            let request = server
                .client
                .request(method.clone(), format!("{}/{path}", server.base));
            let request = match key {
                Some(key) => request.bearer_auth(key),
                None => request,
            };
            request.json(&json!({})).send().await.unwrap().status()
        };
        assert_eq!(
            call(None).await,
            StatusCode::UNAUTHORIZED,
            "{method} {path}"
        );
        assert_ne!(
            call(Some("writer")).await,
            StatusCode::FORBIDDEN,
            "{method} {path}"
        );
        let expected = least == "writer";
        let refused = call(Some("reader")).await == StatusCode::FORBIDDEN;
        assert_eq!(refused, expected, "{method} {path}");
    }
    let into_group = server
        .client
        .post(format!("{}/recipients/import?group=vip", server.base))
        .bearer_auth("importer")
        .send()
        .await
        .unwrap();
    assert_eq!(
        into_group.status(),
        StatusCode::FORBIDDEN,
        "a group needs its own scope"
    );
}

#[test]
fn every_call_is_in_the_openapi_document() {
    let (_, openapi) = described();
    let document = serde_json::to_value(&openapi).unwrap();
    for (path, methods) in [
        ("recipients", vec!["get"]),
        ("recipients/{id}", vec!["get", "put", "patch", "delete"]),
        ("recipients/import", vec!["post"]),
        ("recipients/{id}/notifications", vec!["get"]),
        ("groups/{group}/members", vec!["get"]),
        ("groups/{group}/members/{id}", vec!["put", "delete"]),
        ("groups/{group}/members/batch", vec!["post"]),
        ("suppressions", vec!["get"]),
        (
            "suppressions/{medium}/{address}",
            vec!["get", "put", "delete"],
        ),
    ] {
        let described = &document["paths"][format!("/v1/namespaces/{{ns}}/{path}")];
        for method in methods {
            assert!(described[method].is_object(), "{method} {path}");
        }
    }
    for schema in ["Recipient", "ImportReport", "SuppressedAddress"] {
        assert!(
            document["components"]["schemas"][schema].is_object(),
            "{schema}"
        );
    }
}

use testkit::Stockade;

#[tokio::test]
async fn the_binary_decides_a_recorded_request() {
    let stockade = Stockade::with_bundle(&testkit::repository("policies/bookstore"), "").await;
    let response = stockade.check(testkit::get("/books")).await.expect("an answer");
    assert_eq!(response.status.expect("a status").code, 0);
    assert_eq!(stockade.admin("/readyz").await.0, 200);
    assert_eq!(stockade.terminate().await.code(), Some(0));
}

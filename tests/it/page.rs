//! The operator's page: who may see it and change something on it, what it shows, and that it works in a browser.

use std::time::Duration;

use alloy::primitives::Address;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, StatusCode, header};

use crate::callers::REVOCATION;
use crate::support::{Chain, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x5e);
/// Every page, by its address.
const PAGES: [&str; 7] = [
    "/",
    "/page/payments",
    "/page/sellers",
    "/page/signers",
    "/page/keys",
    "/page/webhooks",
    "/page/networks",
];

/// A browser without a script: keeps the cookie, and sends what browsers send.
struct Browser {
    http: Client,
    url: String,
    cookie: Option<String>,
}

struct Seen {
    status: StatusCode,
    headers: header::HeaderMap,
    text: String,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(|value| value.to_str().unwrap());
        value.unwrap_or_default()
    }

    /// The token in the forms of the page.
    fn token(&self) -> String {
        let (_, rest) = self.text.split_once("name=\"token\" value=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    }
}

impl Browser {
    fn new(url: &str) -> Self {
        let http = Client::builder().no_proxy().redirect(Policy::none());
        Self {
            http: http.build().unwrap(),
            url: url.to_owned(),
            cookie: None,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Seen {
        let cookie = self.cookie.iter();
        let request = cookie.fold(request, |request, cookie| request.header("cookie", cookie));
        let answer = request.send().await.unwrap();
        Seen {
            status: answer.status(),
            headers: answer.headers().clone(),
            text: answer.text().await.unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Seen {
        let request = self.http.get(format!("{}{path}", self.url));
        self.send(request.header("accept", "text/html")).await
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Seen {
        self.post_from(&self.url, path, fields).await
    }

    /// A form that a page of `origin` sends.
    async fn post_from(&self, origin: &str, path: &str, fields: &[(&str, &str)]) -> Seen {
        let request = self.http.post(format!("{}{path}", self.url));
        let request = request.header("origin", origin);
        self.send(request.body(form(fields)).header("content-type", FORM))
            .await
    }

    async fn log_in(&mut self, key: &str) {
        let seen = self.post("/login", &[("key", key)]).await;
        assert_eq!(seen.status, 303, "{}", seen.text);
        let cookie = seen.header("set-cookie");
        for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        assert!(
            !cookie.contains("Secure") && !cookie.contains(key),
            "{cookie}"
        );
        self.cookie = cookie.split(';').next().map(str::to_owned);
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

fn form(fields: &[(&str, &str)]) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields).finish()
}

/// A key of the operator, which the service knows.
pub(crate) async fn admin_key(world: &World) -> String {
    let said = world.command(&["keys", "create", "ops", "--scope", "admin"]);
    let key = said.lines().next().unwrap().to_owned();
    let caller = world.facilitator.with_key(&key);
    eventually("the new key to be known", REVOCATION, async || {
        (caller.get("/signers").await.status == 200).then_some(())
    })
    .await;
    key
}

#[tokio::test(flavor = "multi_thread")]
async fn page_is_for_the_operator_alone() {
    let world = World::new().await;
    let url = world.facilitator.url();
    let mut browser = Browser::new(url);
    for path in PAGES {
        let seen = browser.get(path).await;
        assert_eq!(seen.status, 200, "{path}: a program on this machine");
        let policy = seen.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'"), "{path}");
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert!(!seen.text.contains("style=\""), "{path}");
        assert!(
            !seen.text.contains("Log out"),
            "{path}: nobody is logged in"
        );
    }
    // A page that has the host of its own name pointed here, and a request through a proxy.
    for (name, value) in [
        ("host", "evil.example"),
        ("x-forwarded-for", "192.0.2.1"),
        ("sec-fetch-site", "cross-site"),
    ] {
        for path in PAGES {
            let request = browser.http.get(format!("{url}{path}"));
            let request = request.header("accept", "text/html").header(name, value);
            let seen = browser.send(request).await;
            assert_eq!(seen.status, 401, "{path} {name}");
            assert!(seen.text.contains("type=\"password\""), "{path} {name}");
        }
    }

    let key = admin_key(&world).await;
    for path in PAGES {
        assert_eq!(browser.get(path).await.status, 401, "{path}");
        let program = world.facilitator.get(path).await;
        let expected = if path == "/" { 404 } else { 401 };
        assert_eq!(program.status, expected, "{path}: without a page as before");
        assert!(program.body["code"].is_string(), "{path}: {program:?}");
    }
    for wrong in ["", "x402d_0123456789ab_00", &key[..key.len() - 1]] {
        let seen = browser.post("/login", &[("key", wrong)]).await;
        assert_eq!(seen.status, 401, "{wrong}");
        assert_eq!(seen.header("set-cookie"), "");
    }
    let seller = world.key("shop", PAYEE, &[]).await;
    let seen = browser.post("/login", &[("key", &seller)]).await;
    assert_eq!(seen.status, 401, "{}", seen.text);
    assert!(seen.text.contains("scope admin"), "{}", seen.text);

    browser.log_in(&key).await;
    for path in PAGES {
        let seen = browser.get(path).await;
        assert_eq!(seen.status, 200, "{path}");
        assert_eq!(seen.header("cache-control"), "no-store", "{path}");
        assert!(seen.text.contains("Log out"), "{path}");
        assert!(!seen.text.contains(&key), "{path}");
    }
    let token = browser.get("/").await.token();
    let seen = browser.post("/logout", &[("token", &token)]).await;
    assert_eq!(seen.status, 303);
    assert_eq!(browser.get("/").await.status, 401, "the session is over");
    assert!(!world.facilitator.log().contains(&key));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_for_another_page_or_without_the_forms_token() {
    let world = World::new().await;
    let signer = Chain::signers(1)[0].address.to_checksum(None);
    let url = world.facilitator.url().to_owned();
    let pause = |token: &str| {
        let fields = [
            ("network", "eip155:84532"),
            ("signer", &signer),
            ("action", "pause"),
            ("token", token),
        ];
        fields.map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    let send = async |browser: &Browser, origin: &str, token: &str| {
        let fields = pause(token);
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        browser.post_from(origin, "/page/signers", &fields).await
    };
    let is_paused = async |browser: &Browser| {
        let seen = browser.get("/page/signers").await;
        assert_eq!(seen.status, 200);
        seen.text.contains("Resume")
    };
    let refuses = async |browser: &Browser| {
        let token = browser.get("/page/signers").await.token();
        for (origin, token) in [
            ("http://evil.example", token.as_str()),
            ("null", &token),
            ("http://localhost:1", &token),
            (&url, ""),
            (&url, &"0".repeat(64)),
        ] {
            let seen = send(browser, origin, token).await;
            assert_eq!(seen.status, 403, "{origin} {token}");
        }
        assert!(!is_paused(browser).await);
        token
    };
    let mut browser = Browser::new(&url);
    // A program on this machine reads and changes nothing: it may forward what strangers send.
    for page in ["/page/signers", "/page/keys"] {
        let seen = browser.get(page).await;
        assert_eq!(seen.status, 200);
        assert!(!seen.text.contains("<form"), "{page}: {}", seen.text);
        assert!(seen.text.contains("--scope admin"), "{page}");
    }
    let seen = send(&browser, &url, "").await;
    assert_eq!(seen.status, 403);
    assert!(seen.text.contains("without a login"), "{}", seen.text);
    assert!(!is_paused(&browser).await);
    let foreign = browser.post_from("http://evil.example", "/login", &[("key", "x")]);
    assert_eq!(foreign.await.status, 403);
    // A form as long as no form is.
    let long = "x".repeat(100_000);
    let seen = browser.post("/login", &[("key", &long)]).await;
    assert_eq!(seen.status, 413);

    let key = admin_key(&world).await;
    let seen = send(&browser, &url, "").await;
    assert_eq!(seen.status, 401, "the loopback address is nobody now");
    browser.log_in(&key).await;
    let token = refuses(&browser).await;
    let mut other = Browser::new(&url);
    other.log_in(&key).await;
    let seen = send(&other, &url, &token).await;
    assert_eq!(seen.status, 403, "the token is of another session");
    assert_eq!(send(&browser, &url, &token).await.status, 303);
    assert!(is_paused(&browser).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_key_is_logged_out() {
    let world = World::new().await;
    let key = admin_key(&world).await;
    let mut browser = Browser::new(world.facilitator.url());
    browser.log_in(&key).await;
    assert_eq!(browser.get("/page/keys").await.status, 200);
    world.command(&["keys", "rotate", "ops", "--keep", "0s"]);
    eventually("the former secret opens nothing", REVOCATION, async || {
        (browser.get("/page/keys").await.status == 401).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_logged_out() {
    let world = World::new().await;
    let key = admin_key(&world).await;
    let mut browser = Browser::new(world.facilitator.url());
    browser.log_in(&key).await;
    let seen = browser.get("/page/keys").await;
    assert_eq!(seen.status, 200);
    let (id, token) = (&key[6..18], seen.token());
    let fields = [("id", id), ("token", token.as_str())];
    assert_eq!(browser.post("/page/keys/revoke", &fields).await.status, 303);
    eventually("the session to end", REVOCATION, async || {
        (browser.get("/").await.status == 401).then_some(())
    })
    .await;
    assert_eq!(browser.post("/page/keys/revoke", &fields).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_stays_logged_in_while_the_database_is_away() {
    const LIMIT: Duration = Duration::from_secs(30);
    let setup = Setup {
        database_proxied: true,
        ..Setup::default()
    };
    let world = setup.build().await;
    let key = admin_key(&world).await;
    let mut browser = Browser::new(world.facilitator.url());
    browser.log_in(&key).await;
    let database = world.database_proxy.as_ref().unwrap();
    for (is_down, status) in [(true, 503), (false, 200)] {
        database.down(is_down);
        eventually("the page to notice", LIMIT, async || {
            let seen = browser.get("/page/keys").await;
            let is_known = !seen.text.contains("key is still good");
            (seen.status == status && is_known != is_down).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cookie_is_secure_behind_a_proxy_with_https() {
    let setup = Setup::default().with("X402D_TRUSTED_PROXIES", "127.0.0.1");
    let world = setup.build().await;
    let said = world.command(&["keys", "create", "ops", "--scope", "admin"]);
    let key = said.lines().next().unwrap();
    let browser = Browser::new(world.facilitator.url());
    for (proto, expected) in [("https", true), ("http", false)] {
        let seen = eventually("the log in", REVOCATION, async || {
            let request = browser.http.post(format!("{}/login", browser.url));
            let request = request
                .header("host", "pay.example")
                .header("origin", format!("{proto}://pay.example:8443"))
                .header("x-forwarded-for", "192.0.2.1")
                .header("x-forwarded-proto", proto)
                .header("content-type", FORM)
                .body(form(&[("key", key)]));
            let seen = browser.send(request).await;
            (seen.status == 303).then_some(seen)
        })
        .await;
        let cookie = seen.header("set-cookie");
        assert_eq!(cookie.contains("Secure"), expected, "{cookie}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_texts_are_shown_and_not_obeyed() {
    const HOSTILE: &str = "https://seller.test/\"><script>alert(1)</script>&'\u{202e}";
    let world = World::new().await;
    let payer = world.payer().await;
    let mut body = Purchase::new(&payer, PAYEE, 10_000).body();
    let long = format!("{HOSTILE}{}", "x".repeat(1_000));
    body["paymentPayload"]["resource"]["url"] = long.into();
    let settled = world.facilitator.settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");
    let id = settled.body["extra"]["paymentId"].as_str().unwrap();
    let browser = Browser::new(world.facilitator.url());
    for path in ["/", "/page/payments", &format!("/page/payments/{id}")] {
        let seen = browser.get(path).await;
        assert_eq!(seen.status, 200);
        assert!(!seen.text.contains("<script>alert"), "{path}");
        assert!(
            seen.text.contains("&lt;script&gt;alert"),
            "{path}: {}",
            seen.text
        );
        assert!(!seen.text.contains('\u{202e}'), "{path}");
        assert!(!seen.text.contains(&"x".repeat(400)), "{path}: bounded");
        assert!(seen.text.contains("0.01 USDC"), "{path}");
    }
    for query in [
        "q=%22%3E%3Cscript%3E",
        "payee=%3Cscript%3E",
        "state=%00",
        "cursor=%3Cb%3E",
    ] {
        let seen = browser.get(&format!("/page/payments?{query}")).await;
        assert!(
            !seen.text.contains("<script>") && !seen.text.contains("<b>"),
            "{query}"
        );
        assert!(!seen.status.is_server_error(), "{query}: {}", seen.status);
    }
    for path in [
        "/page/payments/nothing",
        "/page/payments/018f3c9e-7b1c-7def-8000-0123456789ab",
    ] {
        let seen = browser.get(path).await;
        assert_eq!(seen.status, 404, "{path}");
        assert!(
            seen.header("content-type").starts_with("text/html"),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_is_found_by_everything_that_names_it() {
    let world = World::new().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 10_000);
    let settled = world.facilitator.settle(&purchase.body()).await;
    assert!(settled.succeeded(), "{settled:?}");
    let browser = Browser::new(world.facilitator.url());
    let found = async |sought: &str| {
        let query = form(&[("q", sought)]);
        let seen = browser.get(&format!("/page/payments?{query}")).await;
        assert_eq!(seen.status, 303, "{sought}: {}", seen.text);
        let to = seen.header("location").to_owned();
        (to.clone(), browser.get(&to).await)
    };
    let id = settled.body["extra"]["paymentId"].as_str().unwrap();
    let own = format!("/page/payments/{id}");
    for (sought, address) in [
        (id, own.as_str()),
        (&settled.transaction(), &own),
        (&PAYEE.to_string(), "/page/payments?payee="),
        (
            &purchase.signer.address().to_string(),
            "/page/payments?payer=",
        ),
    ] {
        let (to, seen) = found(sought).await;
        assert!(to.starts_with(address), "{sought}: {to}");
        assert_eq!(seen.status, 200);
        assert!(seen.text.contains(id), "{sought}");
    }
    let (_, none) = found("order-7").await;
    assert!(!none.text.contains(id));
    let narrow = "payer=&state=settled&minAmount=10000&maxAmount=10000&network=base-sepolia&from=2026-01-01&to=";
    for (query, is_there) in [(narrow, true), ("minAmount=10001", false)] {
        let seen = browser.get(&format!("/page/payments?{query}")).await;
        assert_eq!(seen.status, 200, "{}", seen.text);
        assert_eq!(seen.text.contains(id), is_there, "{query}");
    }
    let table = browser
        .get(&format!("/page/payments.csv?payee={PAYEE}"))
        .await;
    assert!(table.header("content-type").starts_with("text/csv"));
    assert!(table.text.contains(id));
    let story = browser.get(&own).await.text;
    for told in [
        "accepted, waits",
        "transaction written",
        "success granted",
        "sepolia.basescan.org",
    ] {
        assert!(story.contains(told), "{told}: {story}");
    }
    let seller = browser.get(&format!("/page/sellers?payee={PAYEE}")).await;
    assert!(seller.text.contains("0.01 USDC"), "{}", seller.text);
}

//! The frame of every page.

use axum::response::Html;
use maud::{DOCTYPE, Markup, html};

use super::form::TOKEN;
use super::viewer::Viewer;
use crate::ledger::EventType;

/// The pages, in the order of the menu.
const PAGES: [(&str, &str); 7] = [
    ("/", "Overview"),
    ("/page/payments", "Payments"),
    ("/page/sellers", "Sellers"),
    ("/page/signers", "Signers"),
    ("/page/keys", "Keys"),
    ("/page/webhooks", "Webhooks"),
    ("/page/networks", "Networks"),
];

/// Said to those who may read alone.
pub(super) const LOGIN_TO_CHANGE: &str = "You look at this page without a login, so nothing can be changed. `x402d keys create NAME --scope admin` makes a key to log in with; from then on the page asks for it.";

/// A page with the menu. `path` is that of its entry there.
pub(super) fn page(viewer: &Viewer, (path, title): (&str, &str), content: &Markup) -> Html<String> {
    let body = html! {
        a.skip href="#content" { "Skip to the content" }
        header {
            nav aria-label="Pages" {
                @for (to, name) in PAGES {
                    a href=(to) aria-current=[(to == path).then_some("page")] { (name) }
                }
            }
            div.session {
                span #connection role="status" {}
                @if viewer.is_logged_in {
                    form method="post" action="/logout" {
                        (token(viewer))
                        button.quiet type="submit" { "Log out" }
                    }
                }
            }
        }
        main #content tabindex="-1" data-events=(EventType::ALL.map(EventType::name).join(" ")) {
            @if !viewer.may_change() { p.hint { (LOGIN_TO_CHANGE) } }
            (content)
        }
    };
    document(title, &body)
}

/// A page without the menu, for those who are not logged in.
pub(super) fn bare(title: &str, content: &Markup) -> Html<String> {
    document(title, &html! { main #content { (content) } })
}

/// What the script reads again when something has happened.
pub(super) fn live(content: &Markup) -> Markup {
    html! { div #live { (content) } }
}

/// The field that every form has to send back.
pub(super) fn token(viewer: &Viewer) -> Markup {
    html! { input type="hidden" name=(TOKEN) value=(viewer.form_token.text()); }
}

fn document(title: &str, body: &Markup) -> Html<String> {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · x402d" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/page/page.css";
                script src="/page/page.js" defer {}
            }
            body { (body) }
        }
    };
    Html(document.into_string())
}

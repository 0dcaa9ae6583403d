//! The page itself: one document that asks for nothing but its numbers, and the policy that holds it to that.

use std::sync::LazyLock;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The document.
pub(in crate::service) static PAGE: LazyLock<String> =
    LazyLock::new(|| include_str!("page.html").replace("{style}", STYLE).replace("{script}", SCRIPT));

/// Its Content-Security-Policy: this style, this script, and numbers from where it came from.
pub(in crate::service) static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_for_nothing_but_its_numbers() {
        let page = PAGE.to_lowercase();
        for what in [" src=", "url(", "@import", "http:", "https:", " onclick", " style="] {
            let allowed = page.matches(what).count()
                - page.matches("'http://www.w3.org/2000/svg'").count() * usize::from(what == "http:");
            assert_eq!(allowed, 0, "{what}");
        }
        assert_eq!(SCRIPT.matches("fetch(").count(), 1);
    }

    #[test]
    fn the_policy_names_what_stands_in_the_page_and_nothing_unsafe() {
        assert!(PAGE.contains(&format!("<style>{STYLE}</style>")));
        assert!(PAGE.contains(&format!("<script>{SCRIPT}</script>")));
        assert!(!POLICY.contains("unsafe") && !POLICY.contains('*'), "{}", *POLICY);
    }
}

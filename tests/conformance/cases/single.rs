//! Endpoints to which one worker responds: tokenizers, models, information.

use serde_json::json;

use super::{Case, Material};

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let model = &material.model;
    let text = json!({ "model": model, "prompt": material.few().text });
    let texts = json!({ "model": model, "prompt": [material.few().text, "é 語 😀"] });
    let tokens = json!({ "model": model, "tokens": [50, 60, 70] });
    let mut cases = vec![
        Case::get("/v1/models"),
        Case::get(&format!("/v1/models/{model}")),
        Case::get("/v1/models/no-such-model").status(404),
        Case::get("/no/such/path").status(404),
    ];
    for prefix in ["", "/v1"] {
        cases.push(Case::post("text", &format!("{prefix}/tokenize"), &text));
        cases.push(Case::post("texts", &format!("{prefix}/tokenize"), &texts));
        cases.push(Case::post("ids", &format!("{prefix}/detokenize"), &tokens));
    }
    for path in [
        "/model_info",
        "/get_model_info",
        "/server_info",
        "/get_server_info",
        "/health",
    ] {
        cases.push(Case::get(path));
    }
    cases
}

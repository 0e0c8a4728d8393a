//! Quotes of requests as SGLang writes them, with and without the injected members.

use bytes::BytesMut;

use super::super::bootstrap::{Bootstrap, Room, inject};
use super::super::ids::RequestId;
use super::super::request::parse;
use super::*;
use crate::pd::Route;

const RID: &str = "0000000000000000000000000000abcd";
const ROOM: &str = "65682215335082810";

/// The response to this request of a client, with the values of its fields in place of HOST, PORT, ROOM and RID.
struct Case {
    host: &'static str,
    port: Option<u16>,
    client: &'static str,
    rooms: usize,
}

const ONE: Case = Case {
    host: "10.1.2.3",
    port: Some(31900),
    client: r#"{"model":"tiny"}"#,
    rooms: 1,
};

impl Case {
    fn concealed(&self, quoted: &str) -> Option<String> {
        let route = Route::Generate;
        let bootstrap = Bootstrap::new(self.host, self.port);
        let number = |index: usize| 65_682_215_335_082_810 + index as u64;
        let rooms: Vec<Room> = (0..self.rooms)
            .filter_map(|i| Room::new(number(i)))
            .collect();
        let rids: Vec<RequestId> = (0..self.rooms)
            .map(|i| RequestId(0xabcd + i as u128))
            .collect();
        let fields = Fields {
            bootstrap: &bootstrap,
            rooms: &rooms,
            rank: Some(3),
            rids: Some(&rids),
        };
        let facts = parse(route, self.client.as_bytes()).unwrap_or_else(|why| panic!("{why}"));
        let sent = inject(BytesMut::from(self.client), &facts, &fields);
        let port = self.port.map_or("None".to_owned(), |port| port.to_string());
        let quoted = quoted
            .replace("HOST", bootstrap.host())
            .replace("PORT", &port)
            .replace("ROOM", ROOM)
            .replace("RID", RID);
        let concealed = conceal(quoted.as_bytes(), &sent, &fields)?;
        Some(String::from_utf8_lossy(&concealed).into_owned())
    }

    fn check(&self, quoted: &str, wanted: &str) {
        assert_eq!(self.concealed(quoted).as_deref(), Some(wanted), "{quoted}");
    }
}

const DICT: &str =
    "'bootstrap_host': 'HOST', 'bootstrap_port': PORT, 'bootstrap_room': ROOM, 'rid': 'RID'";

#[test]
fn a_dict_of_python_loses_what_was_injected_wherever_it_stands() {
    for (before, after) in [
        ("{'model': 'tiny', ", "}"),
        ("{'model': 'tiny', ", ", 'tool_choice': 'none'}"),
        ("{", ", 'tool_choice': 'none'}"),
        ("{", "}"),
    ] {
        let quote = |dict: &str| {
            format!(
                r#"{{"object":"error","message":"1 validation error:\n  {{'msg': 'Field required', 'input': {dict}}}"}}"#
            )
        };
        let without = match (before.strip_suffix(", "), after.strip_prefix(", ")) {
            (Some(before), _) => format!("{before}{after}"),
            (None, Some(after)) => format!("{before}{after}"),
            (None, None) => format!("{before}{after}"),
        };
        let quoted = quote(&format!("{before}{DICT}{after}"));
        ONE.check(&quoted, &quote(&without));
        // Twice in one message, as in the real one.
        ONE.check(&quoted.repeat(2), &quote(&without).repeat(2));
    }
    let no_port = Case { port: None, ..ONE };
    no_port.check(&format!("{{'a': 1, {DICT}}}"), "{'a': 1}");
    let ipv6 = Case { host: "::1", ..ONE };
    ipv6.check(&format!("{{'a': 1, {DICT}}}"), "{'a': 1}");
}

#[test]
fn json_loses_it_in_every_depth_of_escapes() {
    let json =
        r#","bootstrap_host":"HOST","bootstrap_port":PORT,"bootstrap_room":ROOM,"rid":"RID"}"#;
    for escape in ["", "\\", "\\\\\\"] {
        let escaped = |text: &str| text.replace('"', &format!("{escape}\""));
        // The client's own blank before the brace stays.
        for client in [r#"{"a":"b""#, r#"{"a":"b" "#] {
            let quoted = format!("b'{}{}'", escaped(client), escaped(json));
            ONE.check(&quoted, &format!("b'{}}}'", escaped(client)));
        }
    }
    let spaced =
        r#"{"a": 1, "bootstrap_host": "HOST", "bootstrap_port": PORT, "bootstrap_room": ROOM}"#;
    ONE.check(spaced, r#"{"a": 1}"#);
    ONE.check(&format!("{{{}", &json[1..]), "{}");
}

#[test]
fn a_batch_loses_its_lists() {
    let batch = Case {
        client: r#"{"text":["a","b"]}"#,
        rooms: 2,
        ..ONE
    };
    let second = "65682215335082811";
    batch.check(
        &format!(
            "{{'text': ['a', 'b'], 'bootstrap_host': ['HOST', 'HOST'], 'bootstrap_port': [PORT, PORT], \
             'bootstrap_room': [ROOM, {second}], 'rid': ['RID', '0000000000000000000000000000abce']}}"
        ),
        "{'text': ['a', 'b']}",
    );
}

#[test]
fn a_rank_goes_with_the_other_members() {
    let dict = DICT.replace("'rid'", "'disagg_prefill_dp_rank': 3, 'rid'");
    ONE.check(&format!("{{'a': 1, {dict}}}"), "{'a': 1}");
    ONE.check(
        "{'a': 1, 'bootstrap_host': 'HOST', 'bootstrap_port': PORT, 'bootstrap_room': ROOM, 'disagg_prefill_dp_rank': 3}",
        "{'a': 1}",
    );
    ONE.check(
        "Request(a=1, bootstrap_room=ROOM, disagg_prefill_dp_rank=3, routed_dp_rank=3)",
        "Request(a=1, bootstrap_room=None, disagg_prefill_dp_rank=None, routed_dp_rank=3)",
    );
}

#[test]
fn a_member_that_stands_alone_has_the_value_that_an_ordinary_server_sees() {
    // The client's own `rid: null` keeps its place in a dict, with the value that came last.
    ONE.check(
        "{'rid': 'RID', 'a': 1, 'bootstrap_host': 'HOST', 'bootstrap_port': PORT, 'bootstrap_room': ROOM}",
        "{'rid': None, 'a': 1}",
    );
    ONE.check(r#"{"rid":"RID","a":1}"#, r#"{"rid":null,"a":1}"#);
    ONE.check(
        "Request(rid='RID', bootstrap_host='HOST', bootstrap_port=PORT, bootstrap_room=ROOM, n=1)",
        "Request(rid=None, bootstrap_host=None, bootstrap_port=None, bootstrap_room=None, n=1)",
    );
}

#[test]
fn values_in_another_form_are_hidden() {
    ONE.check(
        "room ROOM of RID_0 at HOST:PORT failed",
        "room *** of ***_0 at *** failed",
    );
    ONE.check("no response from HOST.", "no response from ***.");
    ONE.check("...: ROOM, 'rid': 'RID'}", "...: ***, 'rid': None}");
}

#[test]
fn the_clients_own_words_stay() {
    let own = Case {
        client: r#"{"text":"ask 10.1.2.3:31900"}"#,
        ..ONE
    };
    own.check(
        &format!("{{'text': 'ask 10.1.2.3:31900', {DICT}}}"),
        "{'text': 'ask 10.1.2.3:31900'}",
    );
    for text in [
        r#"{"error":{"message":"Either text, input_ids or input_embeds should be provided."}}"#,
        "{'bootstrap_host': '10.9.9.9', 'bootstrap_port': 1, 'bootstrap_room': 2}",
        "line 1870, in grid 65682215335082811",
        "110.1.2.34",
        "",
    ] {
        assert_eq!(ONE.concealed(text), None, "{text}");
    }
    // A name is a word of any message.
    let named = Case {
        host: "prefill",
        ..ONE
    };
    assert_eq!(named.concealed("the prefill worker is full"), None);
    named.check(&format!("{{'a': 1, {DICT}}}"), "{'a': 1}");
}

//! Keys of the whole file and of everything around the nodes.

use super::transforms::TRANSFORM;
use super::{CONNECTION, Key, Kind, Place, SINK, SOURCE, Shape, format};

static ONE_CONNECTION: Kind = Kind::Tagged(&CONNECTION);

const CONNECTIONS: Key = Key::new(
    "connections",
    Kind::Map(&format::CONNECTION_NAME, &ONE_CONNECTION),
    "Systems that nodes share, by name.",
);

pub(crate) static PIPELINE: Shape = Shape {
    name: "a pipeline file",
    keys: &[
        Key::new("pipeline", Kind::Format(&format::PIPELINE_NAME), "The name.").required(),
        Key::new("description", Kind::Prose, "What it is for."),
        Key::new("owner", Kind::Prose, "Who is asked."),
        Key::new("docs", Kind::Prose, "Where more is written."),
        Key::new(
            "timezone",
            Kind::Format(&format::TIMEZONE),
            "Whose midnight a date in `--from` and `--to` is; and of triggers that name none.",
        )
        .default("UTC"),
        Key::new(
            "triggers",
            Kind::List(&Kind::Object(&TRIGGER)),
            "What starts a run. None: started by hand.",
        ),
        Key::new(
            "catch_up",
            Kind::Choice { names: &["latest", "all", "none"], unsupported: &[] },
            "Which missed schedules are run.",
        )
        .default("latest"),
        Key::new("concurrency", Kind::Object(&CONCURRENCY), "Runs of this pipeline at once."),
        Key::new(
            "params",
            Kind::Map(&format::PARAM_NAME, &Kind::Object(&PARAM)),
            "Values that the caller of a run may give.",
        ),
        CONNECTIONS,
        Key::new(
            "sources",
            Kind::Map(&format::NODE_NAME, &Kind::Tagged(&SOURCE)),
            "Where rows come from.",
        )
        .required(),
        Key::new(
            "transforms",
            Kind::Map(&format::NODE_NAME, &Kind::Object(&TRANSFORM)),
            "What happens to them.",
        ),
        Key::new("sinks", Kind::Map(&format::NODE_NAME, &Kind::Tagged(&SINK)), "Where they go.")
            .required(),
        Key::new("retry", Kind::Object(&RETRY), "When a task fails."),
        Key::new("checkpoint", Kind::Object(&CHECKPOINT), "How often progress is made durable."),
        Key::new("checks", Kind::List(&Kind::Any(None)), "Data quality, after the load.")
            .unsupported(),
        Key::new("alerts", Kind::List(&Kind::Any(None)), "Who is told.").unsupported(),
        Key::new("tests", Kind::List(&Kind::Object(&TEST)), "Run by `weir test`."),
    ],
    exactly_one: &[],
};

pub(crate) static WORKSPACE: Shape =
    Shape { name: "weir.yaml", keys: &[CONNECTIONS], exactly_one: &[] };

pub(crate) static TRIGGER: Shape = Shape {
    name: "a trigger",
    keys: &[
        Key::new("every", Kind::Format(&format::DURATION), "An interval."),
        Key::new("cron", Kind::Format(&format::CRON), "Minute, hour, day, month, weekday."),
        Key::new("timezone", Kind::Format(&format::TIMEZONE), "Of `cron`."),
        Key::new(
            "after",
            Kind::OneOrMany(&Kind::Format(&format::PIPELINE_NAME)),
            "Pipelines that must all have succeeded since the last run.",
        ),
        Key::new("webhook", Kind::Object(&WEBHOOK), "POST /hooks/PIPELINE starts a run."),
    ],
    exactly_one: &[&["every", "cron", "after", "webhook"]],
};

pub(crate) static WEBHOOK: Shape = Shape {
    name: "`webhook`",
    keys: &[Key::new("verify", Kind::Object(&VERIFY), "How a request proves its sender.")],
    exactly_one: &[],
};

pub(crate) static VERIFY: Shape = Shape {
    name: "`verify`",
    keys: &[Key::new("hmac_sha256", Kind::Object(&HMAC), "A signature of the body in a header.")
        .required()],
    exactly_one: &[],
};

pub(crate) static HMAC: Shape = Shape {
    name: "`hmac_sha256`",
    keys: &[
        Key::new("header", Kind::Format(&format::HEADER_NAME), "The header of the signature.")
            .required(),
        Key::new("secret", Kind::Template(Place::Connection), "The shared secret.").required(),
    ],
    exactly_one: &[],
};

pub(crate) static CONCURRENCY: Shape = Shape {
    name: "`concurrency`",
    keys: &[
        Key::new(
            "runs",
            Kind::Integer { min: 1, max: 10_000 },
            "Runs at once; more than 1 is not supported yet.",
        )
        .default("1"),
        Key::new(
            "on_overlap",
            Kind::Choice { names: &["queue", "skip", "cancel_running"], unsupported: &[] },
            "What happens to one run too many.",
        )
        .default("queue"),
    ],
    exactly_one: &[],
};

pub(crate) static PARAM: Shape = Shape {
    name: "a parameter",
    keys: &[
        Key::new("type", Kind::Format(&format::COLUMN_TYPE), "The type of the value.").required(),
        Key::new("default", Kind::Any(None), "Without one, the caller must give a value."),
        Key::new("description", Kind::Prose, "What it is for."),
    ],
    exactly_one: &[],
};

pub(crate) static RETRY: Shape = Shape {
    name: "`retry`",
    keys: &[
        Key::new(
            "max_attempts",
            Kind::Integer { min: 1, max: 1_000 },
            "Attempts of one task, the first included.",
        )
        .default("3"),
        Key::new("delay", Kind::Format(&format::DURATION), "Before the second attempt.")
            .default("1s"),
        Key::new(
            "backoff",
            Kind::Choice { names: &["constant", "linear", "exponential"], unsupported: &[] },
            "How the delay grows.",
        )
        .default("exponential"),
        Key::new(
            "retry_on",
            Kind::OneOrMany(&Kind::Format(&format::RETRY_ON)),
            "`timeout`, `connection`, HTTP statuses. Default: whatever may succeed when repeated.",
        ),
    ],
    exactly_one: &[],
};

pub(crate) static CHECKPOINT: Shape = Shape {
    name: "`checkpoint`",
    keys: &[
        Key::new(
            "every",
            Kind::Format(&format::DURATION),
            "A batch is committed at the latest after this time, even if it is not full.",
        )
        .default("30s"),
        Key::new(
            "exchange",
            Kind::Choice { names: &["sync", "async", "off"], unsupported: &[] },
            "On a cluster: whether rows between the tasks of a join are durable, or kept by executors.",
        )
        .default("sync"),
    ],
    exactly_one: &[],
};

pub(crate) static TEST: Shape = Shape {
    name: "a test",
    keys: &[
        Key::new("name", Kind::Prose, "What it shows.").required(),
        Key::new(
            "given",
            Kind::Map(&format::NODE_NAME, &Kind::List(&Kind::Any(None))),
            "Rows of sources.",
        )
        .required(),
        Key::new(
            "expect",
            Kind::Map(&format::INPUT, &Kind::List(&Kind::Any(None))),
            "Rows of nodes, or of `NODE.errors`; only the written columns are compared.",
        )
        .required(),
    ],
    exactly_one: &[],
};

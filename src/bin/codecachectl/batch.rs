//! `batch`: one function over columns.

use std::{fs, path::PathBuf, str::FromStr};

use bytes::Bytes;
use codecached::proto::{
    Column, ColumnType, ExecuteBatchRequest, ExecuteBatchResponse, ResultType, execute_batch_request::Target,
};
use serde_json::{Value, json};

use crate::{
    args::Batch,
    call,
    context::{self, Context, Report},
    failure::{Exit, Failure},
    table, units,
    value::read_file,
};

/// Results that are printed for people; a file or JSON has all of them.
const SHOWN_ROWS: usize = 20;

/// A column as it stands on the command line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Given {
    kind: ColumnType,
    source: Source,
}

/// Where its numbers are.
#[derive(Clone, Debug, PartialEq)]
enum Source {
    /// Little-endian bytes.
    Here(Bytes),
    /// Numbers as text.
    Text(PathBuf),
    /// Little-endian bytes.
    Raw(PathBuf),
}

impl FromStr for Given {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, source) = text.split_once(':').ok_or("must be TYPE:NUMBERS, TYPE:@FILE or TYPE:raw@FILE")?;
        let kind = match name {
            "i32" => ColumnType::I32,
            "u32" => ColumnType::U32,
            "i64" => ColumnType::I64,
            "u64" => ColumnType::U64,
            "f32" => ColumnType::F32,
            "f64" => ColumnType::F64,
            _ => return Err(format!("{name:?} is none of i32, u32, i64, u64, f32, f64")),
        };
        let file = |path: &str, source: fn(PathBuf) -> Source| match path {
            "" => Err("@ needs the name of a file".to_owned()),
            path => Ok(source(path.into())),
        };
        let source = match source.strip_prefix("raw@") {
            Some(path) => file(path, Source::Raw)?,
            None => match source.strip_prefix('@') {
                Some(path) => file(path, Source::Text)?,
                None => Source::Here(numbers(kind, source)?),
            },
        };
        Ok(Self { kind, source })
    }
}

/// Calls a function for each row, prints what it returned, and where it trapped.
pub(crate) async fn run(context: &Context, asked: Batch) -> Result<Report, Failure> {
    let bytes_max = context.limits().await?.unary_max_bytes;
    let columns = asked.columns.iter().map(|given| given.read(bytes_max)).collect::<Result<Vec<_>, _>>()?;
    let request = ExecuteBatchRequest {
        namespace: context.namespace.clone(),
        target: Some(Target::Key(context::key(&asked.key)?)),
        symbol: asked.symbol.clone(),
        rows: asked.rows.unwrap_or_else(|| columns.iter().map(rows).max().unwrap_or(1)),
        columns,
        result: asked.result.map_or(ResultType::Unspecified, ResultType::from).into(),
        cpu_limit: asked.cpu_limit.map(call::to_proto),
        wall_cap: asked.wall_cap.map(call::to_proto),
    };
    let failed = |error| Failure::client(&format!("call {:?} of {:?}", asked.symbol, asked.key), error);
    let answer = context.client.execute_batch(request).await.map_err(failed)?;
    let results = answer.results.clone().unwrap_or_default();
    if let Some(path) = &asked.output {
        let cannot = |error| Failure::local(format!("cannot write {}: {error}", path.display()));
        fs::write(path, &results.values).map_err(cannot)?;
    }
    let texts = texts(&results);
    let is_shown = asked.output.is_none();
    let report = context.report(|| human(&answer, &texts, is_shown), || to_json(&answer, &results, is_shown));
    let exit = if answer.trap.is_some() { Exit::Trapped } else { Exit::Done };
    Ok(Report { exit, ..report })
}

impl Given {
    fn read(&self, bytes_max: u64) -> Result<Column, Failure> {
        const LIMIT: &str = "one message";
        let values = match &self.source {
            Source::Here(bytes) => bytes.clone(),
            Source::Raw(path) => read_file(path, bytes_max, LIMIT)?,
            Source::Text(path) => {
                // Nothing is shorter than a digit and a space.
                let bytes = read_file(path, bytes_max.saturating_mul(8), LIMIT)?;
                let text = String::from_utf8_lossy(&bytes);
                numbers(self.kind, &text).map_err(|why| Failure::misuse(format!("{}: {why}", path.display())))?
            }
        };
        Ok(Column { r#type: self.kind.into(), values })
    }
}

fn width_bytes(kind: ColumnType) -> usize {
    match kind {
        ColumnType::I64 | ColumnType::U64 | ColumnType::F64 => 8,
        ColumnType::I32 | ColumnType::U32 | ColumnType::F32 | ColumnType::Unspecified => 4,
    }
}

fn rows(column: &Column) -> u64 {
    (column.values.len() / width_bytes(column.r#type())) as u64
}

/// Numbers with spaces, line ends or commas between them.
fn numbers(kind: ColumnType, text: &str) -> Result<Bytes, String> {
    fn all<T: FromStr, const N: usize>(text: &str, to_bytes: fn(T) -> [u8; N]) -> Result<Bytes, String> {
        let words = text.split(|it: char| it == ',' || it.is_whitespace()).filter(|word| !word.is_empty());
        let number = |(at, word): (usize, &str)| {
            word.parse().map_err(|_| format!("number {at}: {word:?} is no number of this type"))
        };
        let numbers = words.enumerate().map(number).collect::<Result<Vec<T>, _>>()?;
        Ok(numbers.into_iter().flat_map(to_bytes).collect())
    }
    match kind {
        ColumnType::I32 => all(text, i32::to_le_bytes),
        ColumnType::U32 => all(text, u32::to_le_bytes),
        ColumnType::I64 => all(text, i64::to_le_bytes),
        ColumnType::U64 => all(text, u64::to_le_bytes),
        ColumnType::F32 => all(text, f32::to_le_bytes),
        ColumnType::F64 => all(text, f64::to_le_bytes),
        ColumnType::Unspecified => Err("no type".to_owned()),
    }
}

/// Each result as text.
fn texts(results: &Column) -> Vec<String> {
    let kind = results.r#type();
    let text = |bytes: &[u8]| match (kind, bytes.try_into().map(u32::from_le_bytes), bytes.try_into()) {
        (ColumnType::I32, Ok(half), _) => (half as i32).to_string(),
        (ColumnType::U32, Ok(half), _) => half.to_string(),
        (ColumnType::F32, Ok(half), _) => format!("{:?}", f32::from_bits(half)),
        (ColumnType::I64, _, Ok(word)) => i64::from_le_bytes(word).to_string(),
        (ColumnType::U64, _, Ok(word)) => u64::from_le_bytes(word).to_string(),
        (ColumnType::F64, _, Ok(word)) => format!("{:?}", f64::from_le_bytes(word)),
        _ => "?".to_owned(),
    };
    results.values.chunks(width_bytes(kind)).map(text).collect()
}

fn human(answer: &ExecuteBatchResponse, texts: &[String], is_shown: bool) -> String {
    let [wall, cpu, queued] = [answer.wall_ns, answer.cpu_ns, answer.queued_ns].map(units::nanoseconds);
    let mut lines = vec![("rows".to_owned(), format!("{} returned", answer.rows))];
    if let Some(trap) = &answer.trap {
        lines.push(("row".to_owned(), format!("{} trapped", answer.rows)));
        lines.extend(call::trap_human(trap));
    }
    lines.push(("time".to_owned(), format!("wall {wall}, cpu {cpu}, queued {queued}")));
    let mut text = String::new();
    if is_shown {
        texts.iter().take(SHOWN_ROWS).for_each(|it| text.extend([it, "\n"]));
        if texts.len() > SHOWN_ROWS {
            text.push_str(&format!("... {} more; --json or --output has them\n", texts.len() - SHOWN_ROWS));
        }
    }
    text + &table::pairs(lines)
}

fn to_json(answer: &ExecuteBatchResponse, results: &Column, is_shown: bool) -> Value {
    let mut json = json!({
        "outcome": if answer.trap.is_some() { "trapped" } else { "returned" },
        "rows": answer.rows,
        "queued_ns": answer.queued_ns,
        "wall_ns": answer.wall_ns,
        "cpu_ns": answer.cpu_ns,
    });
    if let Some(trap) = &answer.trap {
        json["trap"] = call::trap_fields(trap);
    }
    if is_shown {
        // Numbers as they are; infinities and NaN, which JSON has not, are text.
        let number = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
        json["results"] = texts(results).into_iter().map(number).collect();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_numbers_or_files_of_them() {
        let given = |text: &str| text.parse::<Given>().unwrap();
        let bytes: Vec<u8> = [1, -2_i64].into_iter().flat_map(i64::to_le_bytes).collect();
        assert_eq!(given("i64:1,-2"), Given { kind: ColumnType::I64, source: Source::Here(bytes.into()) });
        assert_eq!(given("f32:@a:b").source, Source::Text("a:b".into()));
        assert_eq!(given("u64:raw@x").source, Source::Raw("x".into()));
        for bad in ["7", "u8:7", "i32:x", "i32:@", "u32:raw@", "u32:-1", "i32:1;2"] {
            assert!(bad.parse::<Given>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_text_has_numbers_with_spaces_commas_and_lines() {
        use std::io::Write as _;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"1, 2\n3\t4\n\n").unwrap();
        let source = Source::Text(file.path().to_owned());
        let column = Given { kind: ColumnType::U32, source }.read(1 << 20).unwrap();
        assert_eq!((rows(&column), texts(&column)), (4, ["1", "2", "3", "4"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn results_keep_their_type_and_their_infinities() {
        let column = |kind: ColumnType, text| Column { r#type: kind.into(), values: numbers(kind, text).unwrap() };
        let json = |column: &Column| to_json(&ExecuteBatchResponse::default(), column, true)["results"].clone();
        let large = column(ColumnType::U64, "18446744073709551615 0");
        assert_eq!(json(&large), json!([u64::MAX, 0]));
        assert_eq!(json(&column(ColumnType::F64, "inf -0.5 1e300")), json!(["inf", -0.5, 1e300]));
        assert_eq!(texts(&column(ColumnType::I32, "-7")), ["-7"]);
        let many = texts(&column(ColumnType::I32, &"5 ".repeat(30)));
        let text = human(&ExecuteBatchResponse { rows: 30, ..ExecuteBatchResponse::default() }, &many, true);
        assert!(text.contains("... 10 more") && text.contains("30 returned"), "{text}");
    }
}

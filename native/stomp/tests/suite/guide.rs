//! Checks the counts of cases in `guides/conformance.md`. `UPDATE_GUIDES=1` writes them instead.

use crate::conformance::ways;
use crate::support::{Case, cases};
use std::path::Path;
use std::{env, fs};

const BEGIN: &str = "<!-- counted: begin -->\n";
const END: &str = "<!-- counted: end -->\n";

#[derive(Default)]
struct Counts {
    cases: usize,
    runs: usize,
}

impl Counts {
    fn add(&mut self, case: &Case) {
        let ways = if case.encodes.is_some() {
            1
        } else {
            ways(&case.input).len()
        };
        self.cases += 1;
        self.runs += ways * case.starts.len();
    }
}

fn counted() -> String {
    let cases = cases();
    let (mut rows, mut total, mut rules) = (String::new(), Counts::default(), 0);
    for of_rule in cases.chunk_by(|a, b| (&a.section, &a.rule) == (&b.section, &b.rule)) {
        let mut counts = Counts::default();
        for case in of_rule {
            counts.add(case);
            total.add(case);
        }
        rules += 1;
        rows += &format!(
            "| {} | {} | {} | {} |\n",
            of_rule[0].section, of_rule[0].rule, counts.cases, counts.runs
        );
    }
    format!(
        "{rules} rules, {} cases, {} runs.\n\n\
         | Section | Rule | Cases | Runs |\n| --- | --- | --: | --: |\n{rows}",
        total.cases, total.runs
    )
}

#[test]
fn the_guide_has_the_counts() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guides/conformance.md");
    let guide = fs::read_to_string(&path).unwrap();
    let (before, rest) = guide
        .split_once(BEGIN)
        .expect("the mark that begins the counts");
    let (found, after) = rest.split_once(END).expect("the mark that ends the counts");
    let counted = counted();
    if env::var_os("UPDATE_GUIDES").is_some() {
        fs::write(&path, [before, BEGIN, &counted, END, after].concat()).unwrap();
    } else {
        assert_eq!(
            found, counted,
            "`UPDATE_GUIDES=1 cargo test` updates the guide"
        );
    }
}

"""A run as JUnit XML, for the test pages of CI systems: a suite for each run, a case for its
verdict, each metric that decides, each that regressed besides, and each trial.

The form is Ant's (https://github.com/windyroad/JUnit-Schema/blob/master/JUnit.xsd) as Jenkins and
GitLab read it. The numbers are `properties` of a case, which Jenkins has added to the form.

An unknown outcome is an `error`, never `skipped`: the run does not exit with 0, and a nightly job
that does not come to a verdict for weeks must not look healthy. CI systems keep skipped cases
green and fold their messages away. They show an error, and show it apart from the failures of a
kernel.

A metric that regressed and does not decide is a failure, although the run may exit with 0: a page
that is all green would hide it. A scenario that expects the regression takes it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from junitparser import Error, Failure, JUnitXml, Properties, Property, TestCase, TestSuite

from orchestrator.report.exports.cases import Case, Suite

_GROUPS = {"run": "run", "metric": "metrics", "trial": "trials"}


def junit_xml(suites: Sequence[Suite]) -> str:
    """Return the whole file. A trial's time is the wall-clock time that it took on the runner. A
    suite's time is the sum of its trials' times, although several trials may have run at once."""
    root = JUnitXml("barometer")
    for suite in suites:
        root.append(_suite(suite))
    root.update_statistics()
    text = str(root.tostring(), "utf-8")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _suite(suite: Suite) -> TestSuite:
    made = TestSuite(suite.name)
    if suite.started:  # Ant's form has no time zone
        made.timestamp = datetime.fromisoformat(suite.started).replace(tzinfo=None).isoformat()
    for name, value in suite.facts.items():
        made.add_property(name, value)
    made.add_testcases([_case(suite, case) for case in suite.cases])
    return made


def _case(suite: Suite, case: Case) -> TestCase:
    # Jenkins takes everything before the last dot for a package
    group = f"barometer.{suite.name.replace('.', '_')}.{_GROUPS[case.kind]}"
    made = TestCase(case.name, group, case.seconds)
    if case.numbers:
        properties = Properties()
        for name, value in case.numbers.items():
            properties.add_property(Property(name, str(value)))
        made.append(properties)
    if case.outcome == "passed":
        made.system_out = case.message
    else:
        kind = Failure if case.outcome == "failed" else Error
        result = kind(case.message, case.reason)
        result.text = "\n".join(filter(None, (case.message, case.tail)))
        made.result = result
    return made

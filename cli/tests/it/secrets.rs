//! `--env-file`: variables for modules and scripts, and where their values may appear.

use crate::support::Sandbox;

const COMMAND: &str = r#"
import { command } from "xs";
export default command({
  permissions: { env: ["API_TOKEN", "PLAIN"] },
  run(call, ctx) {
    console.log("the token is", ctx.env.API_TOKEN);
    if (call.meta.args?.fail) throw new Error(`401 for ${ctx.env.API_TOKEN}`);
    return { length: ctx.env.API_TOKEN.length, plain: ctx.env.PLAIN, other: ctx.env.OTHER ?? null };
  },
});
"#;

const FILE: &str = "# for the API\nexport API_TOKEN='s3cr3t-t0k3n'\nPLAIN=\"two words\"\nOTHER=x\n";

#[test]
fn modules_get_the_variables_they_name_and_secrets_are_masked() {
    let place = Sandbox::new();
    place.write("modules/commands/ask.ts", COMMAND);
    place.write("secrets.env", FILE);
    let server =
        place.serve(&["--modules", "modules", "--env-file", "secrets.env", "--sync", "none"]);
    place.await_frames("xs.command.ask.active", 1);
    let told = place.ok(&["call", "ask"]).text();
    assert_eq!(told, "{\"length\":12,\"plain\":\"two words\",\"other\":null}\n");
    let failed = place.xs(&["call", "ask", "fail:=true"]);
    assert_eq!((failed.code, failed.err.contains("401 for ***")), (1, true), "{}", failed.err);
    let logs = place.ok(&["modules", "logs", "ask"]).json();
    assert_eq!(logs[0]["meta"]["message"], "the token is ***");
    let everything = place.ok(&["cat", "--with-body", "*", "xs.*"]).text();
    assert!(!everything.contains("s3cr3t") && !place.log().contains("s3cr3t"));
    assert!(server.stop().success());
}

#[test]
fn a_bad_env_file_is_refused_with_its_line() {
    let place = Sandbox::new();
    place.write("bad.env", "A=1\n\nB=$HOME/x\n");
    place.write("modules/a.test.ts", "");
    for args in [
        &["serve", "store", "--env-file", "bad.env"][..],
        &["test", "modules", "--env-file", "bad.env"],
    ] {
        let run = place.xs(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.err);
        assert!(run.err.contains("bad.env:3: variables are not expanded"), "{}", run.err);
    }
    assert_eq!(place.xs(&["serve", "store", "--env-file", "none.env"]).code, 2);
}

#[test]
fn eval_and_test_get_the_variables_of_env_file() {
    let place = Sandbox::new();
    place.write("secrets.env", FILE);
    place.ok(&["append", "a", "-n"]);
    let eval = |code: &str| place.xs(&["eval", "--env-file", "secrets.env", code]);
    assert_eq!(eval("ctx.env.API_TOKEN").text(), "s3cr3t-t0k3n\n", "asked for, it is printed");
    assert_eq!(eval("console.log('it is', ctx.env.API_TOKEN)").text(), "it is ***\n");
    let thrown = eval("throw new Error(ctx.env.API_TOKEN)");
    assert!(thrown.code == 1 && !thrown.err.contains("s3cr3t"), "{}", thrown.err);
    assert_eq!(eval("ctx.env.HOME === undefined").text(), "false\n");
    // The environment takes precedence.
    let mut command = place.command(&["eval", "--env-file", "secrets.env", "ctx.env.PLAIN"]);
    let output = command.env("PLAIN", "from outside").output().unwrap();
    assert_eq!(output.stdout, b"from outside\n");
    place.write("m/commands/ask.ts", COMMAND);
    place.write(
        "m/commands/ask.test.ts",
        "import { assertEquals, test, trial } from 'xs/test';\nimport ask from './ask.ts';\n\
         test('told', async () => {\n\
           const { out } = await trial(ask, { env: { PLAIN: 'made up' } });\n\
           assertEquals(out[0].meta, { length: 12, plain: 'made up', other: null });\n});\n",
    );
    let tested = place.xs(&["test", "m", "--env-file", "secrets.env"]);
    assert_eq!(tested.code, 0, "{}", tested.text());
}

//! `infra/template.yaml`: linted, expanded as CloudFormation would, and held to its three rules. What each role may do is a golden
//! file: `UPDATE_GOLDEN=1 cargo test -p tests --test infra` writes it anew, to be read as a diff.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use local_dev::native::{provision, workspace};
use serde_json::{Map, Value, json};
use tests::fixtures::skip;

/// The sets of parameters: nothing that is optional, and all of it. Between them every condition is both true and false.
const SETS: [&str; 2] = ["least", "everything"];

/// What may be done to `*`: EC2 and ECR know no smaller resource for these. The first six are Lambda's own, and denied to the functions' code.
const ON_EVERYTHING: [&str; 7] = [
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
    "ecr:GetAuthorizationToken",
];

fn template() -> PathBuf {
    workspace().join("infra/template.yaml")
}

fn testdata(name: &str) -> PathBuf {
    workspace().join("tests/testdata/infra").join(name)
}

/// Whether the linter and the translator are there; else the test says why it does not run.
fn has_tools(test: &str) -> bool {
    let found = provision::cfn_lint_path().exists();
    if !found {
        skip(test, "no cfn-lint in target/tools");
    }
    found
}

/// A command that finds no account and no network: neither tool may need one.
fn offline(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace()).envs([
        ("AWS_DEFAULT_REGION", "eu-central-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
    ]);
    command
}

/// The template after the transform and the conditions; every reference in it leads somewhere, or this fails.
fn expand(set: &str) -> Map<String, Value> {
    let mut python = offline(provision::python());
    let output = python
        .arg("tests/infra/expand.py")
        .arg(template())
        .arg(testdata(&format!("{set}.json")))
        .output()
        .unwrap();
    assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stderr));
    let expanded: Value = serde_json::from_slice(&output.stdout).unwrap();
    expanded["resources"].as_object().unwrap().clone()
}

/// The properties of every resource of a type, by name.
fn of_type<'a>(resources: &'a Map<String, Value>, kind: &str) -> BTreeMap<&'a str, &'a Value> {
    let of_type = |(_, resource): &(&'a String, &'a Value)| resource["Type"] == kind;
    let found: BTreeMap<&str, &Value> = resources
        .iter()
        .filter(of_type)
        .map(|(name, resource)| (name.as_str(), &resource["Properties"]))
        .collect();
    assert!(!found.is_empty(), "there is no {kind}");
    found
}

/// A name of Lambda's, `fleetcron-save`, as the functions' table has it.
fn function_of(properties: &Value) -> &str {
    properties["FunctionName"].as_str().unwrap().strip_prefix("fleetcron-").unwrap()
}

fn list(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        one => vec![one],
    }
}

fn texts(value: &Value) -> BTreeSet<&str> {
    list(value).into_iter().map(|item| item.as_str().unwrap()).collect()
}

/// Every policy statement of the template: whose it is, and what it says.
fn statements(resources: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (name, resource) in resources {
        let properties = &resource["Properties"];
        let inline = properties["Policies"].as_array().into_iter().flatten().map(|policy| {
            (format!("{name} {}", policy["PolicyName"].as_str().unwrap()), &policy["PolicyDocument"])
        });
        // One that several roles have is each one's.
        let shared = properties["Roles"].as_array().into_iter().flatten().map(|role| {
            let role = role.as_str().unwrap().trim_matches(['$', '{', '}']);
            (format!("{role} {}", properties["PolicyName"].as_str().unwrap()), &properties["PolicyDocument"])
        });
        let own = properties.get("PolicyDocument").filter(|_| properties.get("Roles").is_none());
        let own = own.map(|document| (name.clone(), document));
        for (whose, document) in inline.chain(shared).chain(own) {
            found.extend(list(&document["Statement"]).into_iter().map(|s| (whose.clone(), s)));
        }
    }
    assert!(found.len() > 10, "the policies were not found");
    found
}

#[test]
fn the_linter_finds_nothing() {
    if !has_tools("infra-lint") {
        return;
    }
    let output = offline(provision::cfn_lint_path()).arg(template()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn the_api_has_exactly_the_routes_and_leaves_it_to_each_function_who_may_call() {
    if !has_tools("infra-routes") {
        return;
    }
    for set in SETS {
        let resources = expand(set);
        let functions = of_type(&resources, "AWS::Lambda::Function");
        let apis = of_type(&resources, "AWS::ApiGatewayV2::Api");
        let body = &apis["Api"]["Body"];
        assert_eq!(apis.len(), 1);
        assert!(
            apis["Api"].get("CorsConfiguration").is_none() && body.get("x-amazon-apigateway-cors").is_none()
        );
        // A signature of AWS would stand where the token stands.
        assert!(!body.to_string().contains("awsSigv4"), "{body}");

        let mut routed = BTreeMap::new();
        for (path, methods) in body["paths"].as_object().unwrap() {
            let methods = methods.as_object().unwrap();
            assert!(methods.keys().eq(["x-amazon-apigateway-any-method"]), "{path}: {:?}", methods.keys());
            let any = &methods["x-amazon-apigateway-any-method"];
            let integration = &any["x-amazon-apigateway-integration"];
            assert_eq!(integration["payloadFormatVersion"], "2.0");
            let uri = integration["uri"].as_str().unwrap();
            let called = functions.iter().find(|(name, _)| uri.contains(&format!("/${{{name}.Arn}}/")));
            let (_, properties) = called.unwrap_or_else(|| panic!("{path} calls {uri}"));
            routed.insert(path.clone(), function_of(properties).to_owned());
        }
        let routes: BTreeMap<String, String> = functions::ROUTES
            .iter()
            .map(|route| (route.path.to_owned(), route.function.to_owned()))
            .collect();
        assert_eq!(routed, routes, "{set}");
    }
}

#[test]
fn every_function_is_built_for_arm64_and_has_its_own_role_and_log_group() {
    if !has_tools("infra-functions") {
        return;
    }
    for set in SETS {
        let resources = expand(set);
        let functions = of_type(&resources, "AWS::Lambda::Function");
        let mut roles = BTreeSet::new();
        for (name, f) in &functions {
            let function = function_of(f);
            assert_eq!(f["Architectures"], json!(["arm64"]), "{name}");
            assert_eq!(f["Runtime"], "provided.al2023", "{name}");
            assert_eq!(f["Handler"], "bootstrap", "{name}");
            // The handler answers within 10 s, the gateway gives up after 30.
            let timeout = f["Timeout"].as_u64().unwrap();
            assert!(timeout > 10 && timeout < 29, "{name}: {timeout} s");
            assert_eq!(f["Code"]["S3Key"], format!("../target/lambda/{function}/bootstrap.zip"));
            let role = f["Role"].as_str().unwrap().trim_matches(['$', '{', '}']).trim_end_matches(".Arn");
            assert!(roles.insert(role.to_owned()), "{name} shares {role}");
            assert!(resources[role]["Properties"].get("ManagedPolicyArns").is_none(), "{role}");
            let group = f["LoggingConfig"]["LogGroup"].as_str().unwrap().trim_matches(['$', '{', '}']);
            assert_eq!(f["LoggingConfig"]["LogFormat"], "JSON");
            assert_eq!(group, name.replace("Function", "LogGroup"));
            assert!(resources[group]["Properties"]["RetentionInDays"].is_u64(), "{group} is kept for ever");
            for keep in ["DeletionPolicy", "UpdateReplacePolicy"] {
                assert_eq!(resources[group][keep], "Retain", "{group}");
            }
            let mine: Vec<String> = statements(&resources)
                .into_iter()
                .filter(|(whose, _)| *whose == format!("{role} own-log-group"))
                .flat_map(|(_, s)| texts(&s["Resource"]).into_iter().map(str::to_owned).collect::<Vec<_>>())
                .collect();
            assert_eq!(mine, [format!("${{{group}.Arn}}")], "{role}");
            let in_vpc = f.get("VpcConfig").is_some();
            assert_eq!(in_vpc, function != "console", "{name}: the console needs no VPC, the others do");
            let reserved = f.get("ReservedConcurrentExecutions").is_some();
            assert_eq!(reserved, in_vpc && set == "least", "{name}: 0 reserves nothing");
        }
        let programs: BTreeSet<&str> = functions::ROUTES.iter().map(|route| route.function).collect();
        assert_eq!(functions.values().map(|f| function_of(f)).collect::<BTreeSet<_>>(), programs);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it is no setting of the product")]
fn roles_may_do_what_the_golden_file_says() {
    if !has_tools("infra-policies") {
        return;
    }
    let mut got = Map::new();
    for set in SETS {
        let resources = expand(set);
        let mut policies: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (whose, statement) in statements(&resources) {
            policies.entry(whose).or_default().push(statement.clone());
        }
        for (name, role) in of_type(&resources, "AWS::IAM::Role") {
            let trust = list(&role["AssumeRolePolicyDocument"]["Statement"]).into_iter().cloned().collect();
            policies.insert(format!("{name} (who may take it)"), trust);
        }
        got.insert(set.to_owned(), json!(policies));
    }
    let got = serde_json::to_string_pretty(&Value::Object(got)).unwrap() + "\n";
    let path = testdata("policies.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &got).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = got.lines().zip(golden.lines()).find(|(got, golden)| got != golden);
    assert!(got == golden, "policies.json is not what the template says, first here: {differs:?}");
}

#[test]
fn nothing_is_allowed_on_everything_but_what_aws_knows_no_smaller_resource_for() {
    if !has_tools("infra-wildcards") {
        return;
    }
    for set in SETS {
        let resources = expand(set);
        for (whose, statement) in statements(&resources) {
            let actions = texts(&statement["Action"]);
            assert!(actions.iter().all(|action| !action.contains('*')), "{whose}: {actions:?}");
            assert!(
                statement.get("NotAction").is_none() && statement.get("NotResource").is_none(),
                "{whose}"
            );
            if texts(&statement["Resource"]).contains("*") {
                let known = actions.iter().all(|action| ON_EVERYTHING.contains(action));
                assert!(known, "{whose} has {actions:?} on everything");
            }
        }
        // What Lambda may do with network interfaces, the code of the function may not.
        for (name, function) in of_type(&resources, "AWS::Lambda::Function") {
            if function.get("VpcConfig").is_none() {
                continue;
            }
            let whose = format!("{} network-interfaces", name.replace("Function", "Role"));
            let all = statements(&resources);
            let mine: Vec<&Value> = all.iter().filter(|(w, _)| *w == whose).map(|(_, s)| *s).collect();
            let (allow, deny) = (mine[0], mine[1]);
            assert_eq!((&allow["Effect"], &deny["Effect"], mine.len()), (&json!("Allow"), &json!("Deny"), 2));
            assert_eq!(allow["Action"], deny["Action"], "{whose}");
            let own = format!(
                "arn:aws:lambda:eu-central-1:123456789012:function:fleetcron-{}",
                function_of(function)
            );
            assert_eq!(deny["Condition"], json!({"ArnEquals": {"lambda:SourceFunctionArn": own}}), "{whose}");
        }
    }
}

#[test]
fn secrets_are_named_and_never_carried_and_each_role_reads_those_of_its_own_stores() {
    if !has_tools("infra-secrets") {
        return;
    }
    let text = std::fs::read_to_string(template()).unwrap();
    assert!(!text.contains("NoEcho"), "a parameter that has to be hidden is a value of a secret");
    assert!(
        !text.contains("{{resolve:"),
        "a resolved value stands in the function's configuration for all to read"
    );
    for set in SETS {
        let resources = expand(set);
        let mut programs: Vec<(String, String, BTreeMap<String, String>)> = Vec::new();
        for (name, f) in of_type(&resources, "AWS::Lambda::Function") {
            let variables = f.get("Environment").map_or(json!({}), |e| e["Variables"].clone());
            let variables = serde_json::from_value(variables).unwrap();
            programs.push((function_of(f).to_owned(), name.replace("Function", "Role"), variables));
        }
        let container = &resources["WorkerTask"]["Properties"]["ContainerDefinitions"][0];
        assert!(container.get("Secrets").is_none(), "the worker reads them, so that it can read them again");
        let variables = list(&container["Environment"])
            .into_iter()
            .map(|v| (v["Name"].as_str().unwrap().to_owned(), v["Value"].as_str().unwrap().to_owned()));
        programs.push(("worker".to_owned(), "WorkerRole".to_owned(), variables.collect()));

        for (program, role, variables) in programs {
            let (etcd, mongo) = match program.as_str() {
                "worker" | "get" | "output" | "log" | "versions" | "rollback" | "audit_list" => (true, true),
                "console" => (false, false),
                _ => (true, false),
            };
            assert_eq!(variables.contains_key("CRON_ETCD_ENDPOINTS"), etcd, "{program}");
            assert_eq!(variables.contains_key("CRON_MONGODB_URI"), mongo, "{program}");
            let traces =
                |name: &str| variables.get(name).filter(|value| !value.is_empty()).map(String::as_str);
            let traced = etcd && set == "everything";
            let receiver = traces("OTEL_EXPORTER_OTLP_ENDPOINT");
            assert_eq!(receiver, traced.then_some("https://collector.internal:4318"), "{program}");
            assert_eq!(traces("OTEL_EXPORTER_OTLP_HEADERS").is_some(), traced, "{program}");
            assert!(!traced || traces("OTEL_TRACES_SAMPLER_ARG") == Some("0.25"), "{program}");
            let bootstraps = variables.contains_key("CRON_BOOTSTRAP_TOKEN");
            assert_eq!(bootstraps, program == "token_create" && set == "everything", "{program}");
            assert!(!variables.contains_key("CRON_AUTH"), "{program} must not say who may call");
            let mut named = BTreeSet::new();
            for (variable, value) in &variables {
                if let Some(secret) = value.strip_prefix("secretsmanager:") {
                    named.insert(secret.split('#').next().unwrap().to_owned());
                } else if let Some(parameter) = value.strip_prefix("ssm:") {
                    named.insert(format!("arn:aws:ssm:eu-central-1:123456789012:parameter{parameter}"));
                } else {
                    let secret =
                        ["CRON_ETCD_USERNAME", "CRON_ETCD_PASSWORD", "CRON_ETCD_CA", "CRON_ETCD_CERT"];
                    let secret = secret.contains(&variable.as_str())
                        || ["CRON_ETCD_KEY", "CRON_MONGODB_URI", "CRON_BOOTSTRAP_TOKEN"]
                            .contains(&variable.as_str())
                        || variable == "OTEL_EXPORTER_OTLP_HEADERS";
                    assert!(!secret || value.is_empty(), "{program}: {variable} is {value}");
                }
            }
            if program == "worker" && set == "everything" {
                // What CRON_SECRETS_FILE may name.
                assert_eq!(variables["CRON_SECRETS_FILE"], "/etc/fleetcron/secrets.json");
                named.insert(
                    "arn:aws:secretsmanager:eu-central-1:123456789012:secret:fleetcron/jobs/*".to_owned(),
                );
                named.insert("arn:aws:ssm:eu-central-1:123456789012:parameter/fleetcron/jobs/*".to_owned());
            }
            let all = statements(&resources);
            let own = || all.iter().filter(|(whose, _)| whose.starts_with(&format!("{role} ")));
            let readable: BTreeSet<String> = own()
                .filter(|(_, s)| {
                    texts(&s["Action"])
                        .iter()
                        .any(|a| a.starts_with("secretsmanager:") || a.starts_with("ssm:"))
                })
                .flat_map(|(_, s)| texts(&s["Resource"]).into_iter().map(str::to_owned).collect::<Vec<_>>())
                .collect();
            assert_eq!(readable, named, "{program} reads what its settings name, in set {set}");
            for (whose, statement) in own().filter(|(_, s)| texts(&s["Action"]).contains("kms:Decrypt")) {
                let (equals, like) =
                    (&statement["Condition"]["StringEquals"], &statement["Condition"]["StringLike"]);
                assert_eq!(equals["kms:ViaService"], "secretsmanager.eu-central-1.amazonaws.com", "{whose}");
                let which = if like.is_null() { equals } else { like };
                let secret = which["kms:EncryptionContext:SecretARN"].as_str().unwrap();
                assert!(named.contains(secret), "{whose}: {secret}");
            }
        }
    }
}

#[test]
fn a_worker_has_time_to_drain_and_opens_nothing() {
    if !has_tools("infra-worker") {
        return;
    }
    for set in SETS {
        let resources = expand(set);
        let task = &resources["WorkerTask"]["Properties"];
        assert_eq!(task["RuntimePlatform"]["CpuArchitecture"], "ARM64");
        assert_eq!(list(&task["ContainerDefinitions"]).len(), 1);
        let container = &task["ContainerDefinitions"][0];
        let variable = |name: &str| {
            let of_name = |v: &&Value| v["Name"] == name;
            let variables = list(&container["Environment"]);
            variables.into_iter().find(of_name).and_then(|v| v["Value"].as_str()).map(str::to_owned)
        };
        let drain: u64 = variable("CRON_DRAIN_SECONDS").unwrap().parse().unwrap();
        let stop = container["StopTimeout"].as_u64().unwrap();
        // After the drain the worker kills what is left and stores the last records.
        assert!(drain + worker::LAST_RECORDS_MAX.as_secs() < stop, "drain {drain} s, stop after {stop} s");
        assert!(stop <= 120, "Fargate waits no longer than 120 s");
        assert_eq!(container["User"], "10001:10001");
        assert_eq!(container["ReadonlyRootFilesystem"], true);
        assert!(container.get("PortMappings").is_none());
        let data_dir = variable("CRON_DATA_DIR").unwrap();
        assert_eq!(container["MountPoints"][0]["ContainerPath"], data_dir.as_str());
        assert_eq!(container["MountPoints"][0]["SourceVolume"], task["Volumes"][0]["Name"]);
        let help =
            match common::config::parse("worker", std::iter::empty(), ["--help".to_owned()].into_iter()) {
                Ok(common::config::Invocation::Help(text)) => text,
                _ => panic!("--help does not help"),
            };
        for name in list(&container["Environment"]).into_iter().map(|v| v["Name"].as_str().unwrap()) {
            assert!(!name.starts_with("CRON_") || help.contains(name), "{name} is no setting");
        }
        let service = &resources["WorkerService"]["Properties"];
        assert_eq!(service["EnableExecuteCommand"], false);
        assert_eq!(service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"], "DISABLED");
        let deployment = &service["DeploymentConfiguration"];
        assert_eq!(
            (&deployment["MinimumHealthyPercent"], &deployment["MaximumPercent"]),
            (&json!(100), &json!(200))
        );

        for (name, group) in of_type(&resources, "AWS::EC2::SecurityGroup") {
            assert!(group.get("SecurityGroupIngress").is_none(), "{name} lets somebody in");
            let out = list(&group["SecurityGroupEgress"]);
            assert!(!out.is_empty(), "{name}: without a rule everything may go out");
            for rule in out.into_iter().filter(|rule| rule["IpProtocol"] == "-1") {
                assert_eq!(rule["CidrIp"], "127.0.0.1/32", "{name}");
            }
        }
        for (name, rule) in resources.iter().filter(|(_, r)| r["Type"] == "AWS::EC2::SecurityGroupIngress") {
            assert_eq!(rule["Properties"]["GroupId"], "${EndpointsSecurityGroup}", "{name}");
            assert_eq!(rule["Properties"]["FromPort"], 443, "{name}");
        }
    }
}

/// The names of metrics that the template itself counts from logs, with their namespace.
fn counted(resources: &Map<String, Value>) -> BTreeSet<(String, String)> {
    let filters = of_type(resources, "AWS::Logs::MetricFilter");
    let mut found = BTreeSet::new();
    for (name, filter) in filters {
        let group = filter["LogGroupName"].as_str().unwrap().trim_matches(['$', '{', '}']);
        assert_eq!(resources[group]["Type"], "AWS::Logs::LogGroup", "{name}");
        for made in filter["MetricTransformations"].as_array().unwrap() {
            let text = |key: &str| made[key].as_str().unwrap().to_owned();
            found.insert((text("MetricNamespace"), text("MetricName")));
        }
    }
    found
}

#[test]
fn every_alarm_reaches_somebody_and_the_runbook_says_what_it_means() {
    if !has_tools("infra-alarms") {
        return;
    }
    let runbook = std::fs::read_to_string(workspace().join("infra/RUNBOOK.md")).unwrap();
    let (_, section) = runbook.split_once("\n## Alarms on AWS\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let known: BTreeSet<&str> = section.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let topic = "arn:aws:sns:eu-central-1:123456789012:alarms";
    let resources = expand("everything");
    let counted = counted(&resources);
    let alarms = of_type(&resources, "AWS::CloudWatch::Alarm");
    for (name, alarm) in &alarms {
        for whom in ["AlarmActions", "OKActions"] {
            assert_eq!(alarm[whom], json!([topic]), "{name}");
        }
        let says = alarm["AlarmDescription"].as_str().unwrap();
        assert!(says.ends_with(&format!(" infra/RUNBOOK.md#{}", name.to_lowercase())), "{name}: {says}");
        // Where nothing is counted nothing is wrong, but for workers: where nothing is counted there is none.
        let missing = if *name == "NoWorkersAlarm" { "breaching" } else { "notBreaching" };
        assert_eq!(alarm["TreatMissingData"], missing, "{name}");
        let metric = ["Namespace", "MetricName"].map(|key| alarm[key].as_str().unwrap().to_owned());
        let [namespace, metric] = metric;
        assert!(
            namespace.starts_with("AWS/") || counted.contains(&(namespace.clone(), metric.clone())),
            "{name}: nobody counts {namespace} {metric}"
        );
    }
    assert_eq!(
        alarms.keys().copied().collect::<BTreeSet<_>>(),
        known,
        "the runbook's alarms are those that there are"
    );
    let least = expand("least");
    assert!(
        !least.values().any(|r| r["Type"] == "AWS::CloudWatch::Alarm"),
        "without a topic nobody would hear them"
    );
    for set in SETS {
        let resources = expand(set);
        let dashboard = &of_type(&resources, "AWS::CloudWatch::Dashboard")["Dashboard"]["DashboardBody"];
        let dashboard: Value = serde_json::from_str(dashboard.as_str().unwrap()).unwrap();
        let widgets = dashboard["widgets"].as_array().unwrap();
        assert!(widgets.len() > 5, "{dashboard}");
        let metrics =
            widgets.iter().flat_map(|w| w["properties"]["metrics"].as_array().into_iter().flatten());
        for metric in metrics.filter_map(Value::as_array) {
            let Some(namespace) = metric[0].as_str() else { continue };
            let metric = metric[1].as_str().unwrap();
            assert!(
                namespace.starts_with("AWS/") || counted.contains(&(namespace.to_owned(), metric.to_owned())),
                "nobody counts {namespace} {metric}"
            );
        }
    }
}

"""Expands infra/template.yaml as CloudFormation would: the SAM transform, then the conditions for given parameters.

    expand.py TEMPLATE PARAMETERS.json     prints {"resources": ..., "outputs": ...}; every reference in it has been resolved or checked

Of AWS it asks nothing. What it cannot resolve it refuses, with a message and exit code 1: a reference to nothing, a property with a
condition that does not exist, a parameter that breaks its own pattern.
"""

import json
import re
import sys

from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

# One account and region for all: their values stand in the expanded text as they would in AWS.
PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::Region": "eu-central-1",
    "AWS::StackName": "fleetcron",
    "AWS::URLSuffix": "amazonaws.com",
}
NOTHING = object()


class Fault(Exception):
    """The template is wrong."""


class NoManagedPolicies:
    """SAM would look up the names of managed policies at AWS; the template names none."""

    def load(self):
        return {}


class Expansion:
    """One template with one set of parameters."""

    def __init__(self, template, given):
        self.parameters = self.values(template["Parameters"], given)
        self.conditions = template.get("Conditions", {})
        resources = template["Resources"]
        self.kept = {
            name for name, resource in resources.items()
            if "Condition" not in resource or self.condition(resource["Condition"])
        }
        self.resources = {}
        for name in sorted(self.kept):
            resource = {key: value for key, value in resources[name].items() if key != "Condition"}
            depends = resource.get("DependsOn", [])
            for other in [depends] if isinstance(depends, str) else depends:
                if other not in resources:
                    raise Fault(f"{name} depends on {other}, which is no resource")
            self.resources[name] = self.resolve(resource, name)
        self.outputs = self.resolve(template.get("Outputs", {}), "Outputs")
        for rule, body in template.get("Rules", {}).items():
            if "RuleCondition" not in body or self.test(body["RuleCondition"]):
                for assertion in body["Assertions"]:
                    if not self.test(assertion["Assert"]):
                        raise Fault(f"rule {rule}: {assertion['AssertDescription']}")

    @staticmethod
    def values(declared, given):
        unknown = set(given) - set(declared)
        if unknown:
            raise Fault(f"no such parameters: {sorted(unknown)}")
        values = {}
        for name, parameter in declared.items():
            if name in given:
                value = given[name]
            elif "Default" in parameter:
                value = parameter["Default"]
            else:
                raise Fault(f"the parameter {name} has no value")
            pattern = parameter.get("AllowedPattern")
            if pattern and not re.fullmatch(pattern, str(value)):
                raise Fault(f"{name}: {value!r} is not like {pattern}")
            if "AllowedValues" in parameter and value not in parameter["AllowedValues"]:
                raise Fault(f"{name}: {value!r} is none of {parameter['AllowedValues']}")
            if parameter["Type"].startswith("List<") or parameter["Type"] == "CommaDelimitedList":
                value = [item for item in str(value).split(",") if item]
            values[name] = value
        return values

    def condition(self, name):
        if name not in self.conditions:
            raise Fault(f"there is no condition {name}")
        return self.test(self.conditions[name])

    def test(self, node):
        (function, argument), = node.items()
        if function == "Condition":
            return self.condition(argument)
        if function == "Fn::Equals":
            left, right = (self.resolve(side, "a condition") for side in argument)
            return str(left) == str(right)
        if function == "Fn::Not":
            return not self.test(argument[0])
        if function == "Fn::And":
            return all([self.test(each) for each in argument])
        if function == "Fn::Or":
            return any([self.test(each) for each in argument])
        raise Fault(f"{function} in a condition")

    def refer(self, name, where):
        if name == "AWS::NoValue":
            return NOTHING
        if name in PSEUDO:
            return PSEUDO[name]
        if name in self.parameters:
            return self.parameters[name]
        if name in self.kept:
            return "${" + name + "}"
        raise Fault(f"{where} refers to {name}, which is not there")

    def resolve(self, node, where):
        if isinstance(node, list):
            items = [self.resolve(item, where) for item in node]
            return [item for item in items if item is not NOTHING]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            (function, argument), = node.items()
            if function == "Ref":
                return self.refer(argument, where)
            if function == "Fn::If":
                name, yes, no = argument
                return self.resolve(yes if self.condition(name) else no, where)
            if function == "Fn::GetAtt":
                name, attribute = argument if isinstance(argument, list) else argument.split(".", 1)
                if name not in self.kept:
                    raise Fault(f"{where} wants {attribute} of {name}, which is not there")
                return "${" + name + "." + attribute + "}"
            if function == "Fn::Sub":
                return self.substitute(argument, where)
            if function == "Fn::Join":
                separator, items = argument
                return separator.join(str(item) for item in self.resolve(items, where))
            if function.startswith("Fn::"):
                raise Fault(f"{where} uses {function}, which this script does not know")
        resolved = {key: self.resolve(value, where) for key, value in node.items()}
        return {key: value for key, value in resolved.items() if value is not NOTHING}

    def substitute(self, argument, where):
        text, own = argument if isinstance(argument, list) else (argument, {})

        def value(match):
            name = match.group(1)
            if name in own:
                return str(self.resolve(own[name], where))
            if "." in name:
                return str(self.resolve({"Fn::GetAtt": name}, where))
            return str(self.refer(name, where))

        return re.sub(r"\$\{([A-Za-z0-9_:.]+)\}", value, text)


def look_at_parameters(template):
    """Each parameter is used, and stands in one of the groups that the console of AWS shows. (The linter looks at neither.)"""
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    shown = sorted(name for group in groups for name in group["Parameters"])
    if shown != sorted(template["Parameters"]):
        raise Fault(f"these stand in the groups or the parameters alone: {sorted(set(shown) ^ set(template['Parameters']))}")
    body = json.dumps({name: part for name, part in template.items() if name not in ("Metadata", "Parameters")})
    for name in template["Parameters"]:
        if f'"Ref": "{name}"' not in body and "${" + name + "}" not in body:
            raise Fault(f"the parameter {name} is not used")


def main():
    template_path, parameters_path = sys.argv[1:]
    with open(template_path, encoding="utf-8") as file:
        template = yaml_parse(file.read())
    look_at_parameters(template)
    with open(parameters_path, encoding="utf-8") as file:
        given = json.load(file)
    for resource in template["Resources"].values():
        code = resource["Properties"].get("CodeUri") if resource["Type"] == "AWS::Serverless::Function" else None
        if code:
            resource["Properties"]["CodeUri"] = "s3://bucket/" + code  # `sam deploy` uploads the file and puts its address here
    # SAM wants values of all parameters, and puts some of them into names that it makes.
    values = {name: parameter.get("Default", "") for name, parameter in template["Parameters"].items()}
    plain = transform(template, {**PSEUDO, **values, **given}, NoManagedPolicies())
    expansion = Expansion(plain, given)
    json.dump({"resources": expansion.resources, "outputs": expansion.outputs}, sys.stdout, indent=1, sort_keys=True)


if __name__ == "__main__":
    try:
        main()
    except Fault as fault:
        sys.exit(f"{fault}")

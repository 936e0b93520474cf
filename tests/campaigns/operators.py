"""Which mutants a module has: mutmut's operators, three of our own, and the rules of what is no mutant.

mutmut's operators change numbers, strings, operators, keywords, arguments, assignments and conditional expressions.
Ours are: a call whose value nobody uses is left out, what is returned becomes None, and a condition without an operator
is negated. (mutmut's own runner is not used: it mutates no decorated functions, no class bodies and no constants, and
puts trampolines into sources that tests read.)

No mutants are made of:

- what no run of the program sees: annotations, names of types, docstrings, blocks under ``if TYPE_CHECKING``,
  protocols;
- what a message says: what ``raise`` and ``fail`` make out of a text, texts of several words, values in f-strings;
- assertions, and so tracker/invariants.py: one that says less is no other behaviour;
- declarations that say how fast or how strict, not what: decorators, ``__slots__``, ``__all__``, ``frozen=``,
  ``kw_only=``, zip's ``strict=``.

Of a text's three variations by mutmut (marked, lower case, upper case) the marked one is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import libcst as cst
import libcst.matchers as m
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_arg_removal, operator_match, operator_string

RULES = __doc__.split("\n\n", 1)[1].strip()

_TEXT = m.SimpleString() | m.FormattedString() | m.ConcatenatedString()
_MESSAGE = m.Raise(exc=m.Call(args=[m.AtLeastN(m.Arg(value=_TEXT), n=1)]))
_FAIL = m.Call(func=m.Attribute(value=m.Name(), attr=m.Name("fail")))  # raises what it is given
_PROSE = m.SimpleString(value=m.MatchRegex(r"""["'].*\w \w.*"""))
_TYPING = m.If(test=m.Name("TYPE_CHECKING")) | m.ClassDef(bases=[m.Arg(m.Name("Protocol"))])
_SLOTS = m.Assign(targets=[m.AssignTarget(m.Name("__slots__") | m.Name("__all__"))])
_STRICT = m.Arg(keyword=m.Name("strict") | m.Name("frozen") | m.Name("kw_only"))
_TYPE = m.Subscript(value=m.Name("NDArray") | m.Name("Literal") | m.Name("Callable"))
_ALIAS = m.SimpleStatementLine(
    body=[m.Assign(value=_TYPE | m.BinaryOperation(left=m.BinaryOperation(), operator=m.BitOr()))]
)
_DOCSTRING = m.Expr(value=m.SimpleString() | m.ConcatenatedString())
_UNSEEN = m.OneOf(
    m.Annotation(), m.Assert(), m.Decorator(), m.Import(), m.ImportFrom(), m.FormattedStringExpression(),
    _MESSAGE, _FAIL, _PROSE, _TYPING, _SLOTS, _STRICT, _DOCSTRING, _ALIAS,
)  # fmt: skip
_STATEMENT = (cst.SimpleStatementLine, cst.BaseCompoundStatement, cst.ExceptHandler)
_HAS_OPERATOR = m.Comparison() | m.BooleanOperation() | m.UnaryOperation(operator=m.Not())


@dataclass(frozen=True)
class Mutant:
    """One change of a module: ``name`` says where and what, without line numbers; ``lines`` is the statement it is
    in.
    """

    module: str
    name: str
    lines: tuple[int, int]
    imported: bool  # runs when the module is imported, not when a function is called
    source: str


def mutants_of(module: str, source: str) -> list[Mutant]:
    """All mutants of a module's source, in the order of its lines (some do not compile)."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    finder = _Finder(wrapper.module, wrapper.resolve(PositionProvider))
    wrapper.module.visit(finder)
    lines, seen, mutants = source.splitlines(), Counter[str](), []
    for place in finder.found:
        changed = place.changed(lines)
        first, last, more = place.span.start.line, place.span.end.line, len(changed) - len(lines)
        before = " ".join(line.strip() for line in lines[first - 1 : last])
        after = " ".join(line.strip() for line in changed[first - 1 : last + more])
        name = f"{place.function}: {before} => {after}"
        seen[name] += 1
        if seen[name] > 1:
            name += f" (#{seen[name]})"
        mutants.append(Mutant(module, name, place.statement, place.imported, "\n".join(changed) + "\n"))
    return mutants


@dataclass(frozen=True)
class _Place:
    function: str
    imported: bool
    statement: tuple[int, int]
    span: CodeRange
    text: str

    def changed(self, lines: list[str]) -> list[str]:
        start, end = self.span.start, self.span.end
        text = lines[start.line - 1][: start.column] + self.text + lines[end.line - 1][end.column :]
        return [*lines[: start.line - 1], *text.split("\n"), *lines[end.line :]]


class _Finder(cst.CSTVisitor):
    def __init__(self, module: cst.Module, positions: Mapping[cst.CSTNode, CodeRange]) -> None:
        super().__init__()
        self.module = module
        self.positions = positions
        self.found: list[_Place] = []
        self.scopes: list[cst.FunctionDef | cst.ClassDef] = []
        self.statements: list[tuple[int, int]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, _UNSEEN):
            return False
        if isinstance(node, _STATEMENT):
            first, last = self.positions[node].start.line, self.positions[node].end.line
            if isinstance(
                body := getattr(node, "body", None), cst.BaseSuite
            ):  # only the line that says if, for, def ...
                last = self.positions[body].start.line
            self.statements.append((first, last))
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.scopes.append(node)
        for old, new in _variants(node):
            self._add(old, new)
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if isinstance(node, _STATEMENT) and not m.matches(node, _UNSEEN):
            self.statements.pop()
        if self.scopes and self.scopes[-1] is node:
            self.scopes.pop()

    def _add(self, old: cst.CSTNode, new: cst.CSTNode) -> None:
        functions = [scope for scope in self.scopes if isinstance(scope, cst.FunctionDef)]
        in_header = bool(functions) and self.positions[functions[0].body].start.line > self.positions[old].end.line
        where = ".".join(scope.name.value for scope in self.scopes) or "module"
        text = self.module.code_for_node(new)
        self.found.append(_Place(where, not functions or in_header, self.statements[-1], self.positions[old], text))


def _variants(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    """What may stand in the place of what."""
    for kind, operator in mutation_operators:
        if isinstance(node, kind) and operator not in (operator_string, operator_arg_removal, operator_match):
            for mutated in operator(node):
                yield node, mutated
    match node:
        case cst.SimpleString():
            for mutated in list(operator_string(node))[:1]:
                yield node, mutated
        case cst.Call():
            for argument, without in zip(node.args, list(operator_arg_removal(node))[-len(node.args) :], strict=False):
                if argument.keyword and not m.matches(argument, _STRICT):
                    yield node, without
                elif (
                    not argument.star
                    and not argument.keyword
                    and not m.matches(argument.value, m.Name("None") | _PROSE)
                ):
                    yield argument.value, cst.Name("None")
        case cst.Expr(value=cst.Call()):
            yield node, cst.Pass()
        case cst.Return(value=cst.BaseExpression() as value) if not m.matches(value, m.Name("None")):
            yield value, cst.Name("None")
        case cst.If(test=test) | cst.While(test=test) if not m.matches(test, _HAS_OPERATOR):
            yield test, cst.UnaryOperation(cst.Not(), test)

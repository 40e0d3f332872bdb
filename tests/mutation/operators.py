"The small changes that make a mutant: each is one edit of a syntax tree"
import ast
import copy
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
               ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,),
               ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,)}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
              ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
              ast.BitXor: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.MatMult: ast.Mult}
UNCHANGED = ("annotation", "returns", "decorator_list", "ctx", "op", "ops")  # fields without changes of their own
NO_RESULT = re.compile(r"(functools\.)?(lru_)?cache\b|register\(")  # memory, and names read from the file


@dataclass(frozen=True)
class Mutant:
    "One small change of a module"
    module: str
    cell: int        # position of the changed cell among the exported ones
    function: str    # qualified name of the definition that it lies in; empty at the top level
    operator: str
    before: str      # the changed line
    after: str
    source: str      # of the whole cell, changed
    repeat: int = 0  # how many equal changes of equal lines of this definition come before it

    @property
    def id(self) -> str:  # 8 hex digits, which outlive edits elsewhere
        text = "\n".join([self.module, self.function, self.before, self.after, str(self.repeat)])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def change_operands(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    "Comparisons, arithmetic, truth values and constants: name of the operator, and what replaces the node"
    if isinstance(node, ast.Compare):
        for k, op in enumerate(node.ops):
            for other in COMPARISONS[type(op)]:
                yield "comparison", ast.Compare(node.left, [*node.ops[:k], other(), *node.ops[k+1:]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield "boolean", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        for k in range(len(node.values)):
            rest = node.values[:k] + node.values[k+1:]
            yield "boolean", ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0]
    elif isinstance(node, ast.UnaryOp): yield "unary", node.operand
    elif isinstance(node, ast.BinOp): yield "arithmetic", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign):
        yield "arithmetic", ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool): yield "constant", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int): yield "constant", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield "constant", ast.Constant(node.value * .75 if node.value else 1.)


def change_structure(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    "Slices, branches, jumps, returned values and decorators"
    if isinstance(node, ast.Slice):
        ends = {k: getattr(node, k) for k in ("lower", "upper", "step")}
        for end in (k for k, value in ends.items() if value): yield "slice", ast.Slice(**ends | {end: None})
    elif isinstance(node, ast.IfExp):
        yield "branch", ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, (ast.If, ast.While)):
        yield "branch", type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield "branch", ast.comprehension(node.target, node.iter, node.ifs[1:], node.is_async)
    elif isinstance(node, ast.Return) and node.value: yield "return", ast.Return(None)
    elif isinstance(node, (ast.Break, ast.Continue, ast.Raise)): yield "jump", ast.Pass()
    elif isinstance(node, ast.FunctionDef):
        for k, decorator in enumerate(node.decorator_list):
            if NO_RESULT.match(ast.unparse(decorator)): continue
            rest = node.decorator_list[:k] + node.decorator_list[k+1:]
            yield "decorator", ast.FunctionDef(**dict(ast.iter_fields(node)) | dict(decorator_list=rest))


def change_calls(node: ast.AST, imports: set[str]) -> Iterator[tuple[str, ast.AST]]:
    "A call without one of its arguments; its first argument, or the object whose method it is, in place of it; nothing"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call): yield "call", ast.Pass()
    if not isinstance(node, ast.Call): return
    for k in range(len(node.keywords)):
        yield "argument", ast.Call(node.func, node.args, node.keywords[:k] + node.keywords[k+1:])
    if len(node.args) > 1: yield "argument", ast.Call(node.func, node.args[:-1], node.keywords)
    is_method = isinstance(node.func, ast.Attribute) and ast.unparse(node.func).split(".")[0] not in imports
    if is_method: yield "call", node.func.value
    elif node.args and not isinstance(node.args[0], ast.Starred): yield "call", node.args[0]


def mutable_nodes(node: ast.AST, path: tuple = (), function: str = "") -> Iterator[tuple[ast.AST, tuple, str]]:
    "Nodes whose change could change a result, with the way to them; not annotations, imports and messages"
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)): return
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): function = f"{function}.{node.name}".lstrip(".")
    yield node, path, function
    if isinstance(node, ast.Raise) or isinstance(node, ast.Expr) and ast.unparse(node).startswith("print("): return
    for field, value in ast.iter_fields(node):
        if field in UNCHANGED: continue
        for k, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST): yield from mutable_nodes(child, (*path, (field, k)), function)


def replace_node(tree: ast.Module, path: tuple, new: ast.AST) -> str:
    "Source of a tree with another node at a place"
    tree = copy.deepcopy(tree)
    *way, (field, k) = path
    node = tree
    for name, i in way: node = getattr(node, name) if i is None else getattr(node, name)[i]
    if k is None: setattr(node, field, new)
    else: getattr(node, field)[k] = new
    return ast.unparse(ast.fix_missing_locations(tree))


def first_difference(original: str, source: str) -> tuple[str, str]:
    lines = zip([*original.splitlines(), ""], [*source.splitlines(), ""])
    return next((a.strip(), b.strip()) for a, b in lines if a != b)


def mutants_of(module: str, cells: list[str]) -> list[Mutant]:
    "Every mutant of a module's exported cells"
    trees = [ast.parse(source) for source in cells]
    nodes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    imports = {(a.asname or a.name).split(".")[0] for n in nodes for a in n.names}
    mutants, repeats, sources = [], Counter(), set()
    for k, tree in enumerate(trees):
        original = ast.unparse(tree)
        for node, path, function in mutable_nodes(tree):
            changes = [*change_operands(node), *change_structure(node), *change_calls(node, imports)] if path else []
            for operator, new in changes:
                source = replace_node(tree, path, new)
                if source == original or (k, source) in sources: continue
                sources.add((k, source))
                lines = first_difference(original, source)
                mutants.append(Mutant(module, k, function, operator, *lines, source, repeats[function, *lines]))
                repeats[function, *lines] += 1
    return mutants


def choose_mutants(mutants: list[Mutant], number: int, seed: int) -> list[Mutant]:
    "So many, equally from each operator, by a seed; an edit of one definition hardly changes the choice elsewhere"
    order = sorted(mutants, key=lambda m: hashlib.sha256(f"{seed} {m.id}".encode()).hexdigest())
    rank, count = {}, Counter()
    for m in order: rank[m.id], count[m.operator] = count[m.operator], count[m.operator] + 1
    return sorted(sorted(order, key=lambda m: rank[m.id])[:number], key=lambda m: (m.cell, m.function, m.id))

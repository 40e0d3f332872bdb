"""rename.py TREE MAP.yaml…: rename definitions and variables in all notebooks and tests of a checkout, by scope.

MAP: see PROMPT.md (public, locals, parameters, members). Prints what could not be renamed."""
import ast, collections, json, re, sys
from pathlib import Path
import libcst as cst
import yaml
from libcst.metadata import (ClassScope, ComprehensionScope, FunctionScope, GlobalScope, ImportAssignment, MetadataWrapper, ScopeProvider, ParentNodeProvider)

ROOT = Path(sys.argv[1]); maps = {}
for f in sys.argv[2:]:
    for module, kinds in (yaml.safe_load(open(f)) or {}).items():
        for kind, v in (kinds or {}).items():
            if kind == "comprehensions" or not v: continue
            maps.setdefault(module, {}).setdefault(kind, {}).update(v)
PUBLIC = {f"{m}.{o}": n for m, k in maps.items() for o, n in k.get("public", {}).items()}
MEMBERS = collections.defaultdict(dict)
for m, k in maps.items():
    for c, names in k.get("members", {}).items(): MEMBERS[m][c] = names
faults, counts = [], collections.Counter()

def module_of(path):
    text = path.read_text()
    m = re.search(r"#\| default_exp ([\w.]+)", text)
    return f"medseg_nb.{m[1]}" if m else None

def base_of(node):  # dotted text of a Name or Attribute
    if isinstance(node, cst.Name): return node.value
    if isinstance(node, cst.Attribute):
        b = base_of(node.value)
        return f"{b}.{node.attr.value}" if b else None

def qualified_imports(scope_assignments):
    out = {}
    for a in scope_assignments:
        if isinstance(a, ImportAssignment):
            node = a.node
            if isinstance(node, cst.ImportFrom):
                mod = base_of(node.module) if node.module else ""
                if isinstance(node.names, cst.ImportStar): continue
                for al in node.names:
                    local = al.asname.name.value if al.asname else al.name.value
                    if local == a.name: out[a] = f"{mod}.{al.name.value}"
            else:
                for al in node.names:
                    full = base_of(al.name); local = al.asname.name.value if al.asname else full.split(".")[0]
                    if local == a.name: out[a] = full if al.asname else local
    return out

def path_of(scope):  # names of functions and classes around a scope
    names = []
    while not isinstance(scope, GlobalScope) and scope is not None:
        if isinstance(scope, (FunctionScope, ClassScope)) and getattr(scope, "name", None): names.append(scope.name)
        nxt = scope.parent
        if nxt is scope: break
        scope = nxt
    return ".".join(reversed(names))

def inner(scope):  # (kind of the nearest function scope)
    while isinstance(scope, ComprehensionScope) or (isinstance(scope, FunctionScope) and not scope.name): scope = scope.parent
    return scope

def transform(source, module):
    tree = cst.parse_module(source); wrapper = MetadataWrapper(tree); tree = wrapper.module
    scopes = {s for s in wrapper.resolve(ScopeProvider).values() if s is not None}
    new_name = {}  # id(node) -> new name, for Name nodes, FunctionDef/ClassDef names, ImportAlias
    local_maps = maps.get(module, {}).get("locals", {}) if module else {}
    parameter_maps = maps.get(module, {}).get("parameters", {}) if module else {}
    alias_new, kwargs = {}, {}
    params_by_full = {f"{m}.{f}": p for m, k in maps.items() for f, p in k.get("parameters", {}).items()}
    def leaves(s, a, table):
        if isinstance(a, ImportAssignment):
            full = qualified_imports([a]).get(a)
            return full in PUBLIC and not any(al.asname for al in a.node.names if not isinstance(a.node.names, cst.ImportStar) and al.asname and al.asname.name.value == a.name)
        if isinstance(s, GlobalScope): return module and f"{module}.{a.name}" in PUBLIC
        return table.get(a.name, a.name) != a.name
    def visible(scope, name, table):
        s = scope
        while True:
            if not isinstance(s, cst.metadata.scope_provider.BuiltinScope) and any(not leaves(s, a, table) for a in s.assignments if a.name == name): return True
            if s.parent is s or isinstance(s, GlobalScope): return False
            s = s.parent
    def mark(assignment, new, scope):
        node = assignment.node
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)): new_name[id(node.name)] = new
        elif isinstance(node, cst.Name): new_name[id(node)] = new
        elif isinstance(node, cst.Param): new_name[id(node.name)] = new
        else:
            faults.append(f"{module}: {assignment.name}: assigned by {type(node).__name__}"); return
        for access in assignment.references:
            n = access.node
            if isinstance(n, cst.Name): new_name[id(n)] = new
            elif isinstance(n, cst.Attribute):
                while isinstance(n, cst.Attribute): n = n.value
                if isinstance(n, cst.Name): new_name[id(n)] = new
        counts["names"] += 1
    full_of = {}  # id of Name/Attribute node used -> full name, for imported and own public names
    for scope in scopes:
        imports = qualified_imports(list(scope.assignments))
        for a in list(scope.assignments):
            if isinstance(a, ImportAssignment):
                full = imports.get(a)
                if not full: continue
                node = a.node
                if full in PUBLIC:
                    for al in node.names:
                        if isinstance(node, cst.ImportFrom) and al.name.value == full.rpartition(".")[2]:
                            new_name[id(al.name)] = PUBLIC[full]
                            if not al.asname:
                                for access in a.references:
                                    n = access.node
                                    while isinstance(n, cst.Attribute): n = n.value
                                    new_name[id(n)] = PUBLIC[full]
                                counts["imports"] += 1
                for access in a.references:
                    n = access.node
                    dotted = base_of(n) if isinstance(n, (cst.Name, cst.Attribute)) else None
                    full_of[id(n)] = full
                    if isinstance(n, cst.Attribute): pass
                continue
            where = path_of(inner(scope)) if not isinstance(scope, GlobalScope) else ""
            if isinstance(scope, GlobalScope):
                if module and f"{module}.{a.name}" in PUBLIC: mark(a, PUBLIC[f"{module}.{a.name}"], scope)
                if module:
                    for access in a.references: full_of[id(access.node)] = f"{module}.{a.name}"
            elif isinstance(inner(scope), ClassScope) and not isinstance(scope, ComprehensionScope): pass
            else:
                is_param = isinstance(a.node, cst.Param)
                table = {}
                for key, names in ((*local_maps.items(), *parameter_maps.items()) if True else ()):
                    if where == key or where.startswith(key + "."): table |= names
                if is_param and a.name in table and not any(a.name in names for key, names in parameter_maps.items() if where == key or where.startswith(key + ".")):
                    # parameters of nested functions and lambdas may be renamed with the locals around them
                    if isinstance(scope, FunctionScope) and scope.name and where in local_maps and "." not in where and not where.startswith("_"): pass
                if a.name in table:
                    new = table[a.name]
                    if visible(scope, new, table): faults.append(f"{module}: {where}: {a.name} -> {new}: is taken"); continue
                    mark(a, new, scope)
    kw_new, str_new = {}, {}
    name_map = {}
    for scope in scopes:
        if isinstance(scope, GlobalScope):
            imports = qualified_imports(list(scope.assignments))
            for a in scope.assignments:
                full = imports.get(a) if isinstance(a, ImportAssignment) else f"{module}.{a.name}"
                if full in PUBLIC and full.rpartition(".")[2] == a.name: name_map[a.name] = PUBLIC[full]
    def strings_in(node):
        out = []
        class V(cst.CSTVisitor):
            def visit_SimpleString(self, n): out.append(n)
        node.visit(V()); return out
    class Visitor(cst.CSTVisitor):
        def visit_Attribute(self, node):
            n = node; chain = []
            while isinstance(n, cst.Attribute): chain.append(n); n = n.value
            start = full_of.get(id(n)) or full_of.get(id(chain[-1])) or full_of.get(id(node))
            if isinstance(n, cst.Name) and start:
                full = start
                for part in reversed(chain):
                    full = f"{full}.{part.attr.value}"
                    if full in PUBLIC: new_name[id(part.attr)] = PUBLIC[full]; counts["attributes"] += 1
        def visit_Tuple(self, node):
            e = [x.value for x in node.elements]
            if len(e) == 2 and all(isinstance(x, cst.SimpleString) for x in e):
                full = f"{e[0].evaluated_value}.{e[1].evaluated_value}"
                if full in PUBLIC: str_new[id(e[1])] = (e[1].evaluated_value, PUBLIC[full])
        def visit_Annotation(self, node):
            for n in strings_in(node):
                for old, new in name_map.items():
                    if re.search(rf"\b{old}\b", n.value): str_new[id(n)] = (old, new)
        def visit_SimpleString(self, node):
            try: v = node.evaluated_value
            except Exception: return
            if isinstance(v, str) and "from medseg_nb." in v:
                pairs = []
                for m, names in re.findall(r"from (medseg_nb[\w.]*) import ([^\n;]+)", v):
                    for nm in re.findall(r"\w+", names):
                        if f"{m}.{nm}" in PUBLIC: pairs.append((nm, PUBLIC[f"{m}.{nm}"]))
                if pairs: str_new[id(node)] = pairs
        def visit_Nonlocal(self, node): self.names_of(node)
        def visit_Global(self, node): self.names_of(node)
        def names_of(self, node):
            for item in node.names:
                for key, names in local_maps.items():
                    if item.name.value in names: new_name[id(item.name)] = names[item.name.value]
                if isinstance(node, cst.Global) and item.name.value in name_map: new_name[id(item.name)] = name_map[item.name.value]
        def visit_Call(self, node):
            fn = node.func.attr.value if isinstance(node.func, cst.Attribute) else getattr(node.func, "value", "")
            if fn in ("setitem", "setattr", "delattr", "getattr", "hasattr", "delitem") and len(node.args) > 1 and isinstance(node.args[1].value, cst.SimpleString):
                first, text = node.args[0].value, node.args[1].value.evaluated_value
                if isinstance(first, cst.Call) and getattr(first.func, "value", "") == "globals" and text in name_map: str_new[id(node.args[1].value)] = (text, name_map[text])
                elif isinstance(first, (cst.Name, cst.Attribute)):
                    n = first
                    while isinstance(n, cst.Attribute): n = n.value
                    start = full_of.get(id(n)) or full_of.get(id(first))
                    if start:
                        full = ".".join([start, *base_of(first).split(".")[1:], text])
                        if full in PUBLIC: str_new[id(node.args[1].value)] = (text, PUBLIC[full])
            full = None; f = node.func
            if isinstance(f, cst.Name): full = full_of.get(id(f))
            elif isinstance(f, cst.Attribute):
                b = base_of(f); n = f
                while isinstance(n, cst.Attribute): n = n.value
                start = full_of.get(id(n)) or full_of.get(id(f))
                if start and b: full = ".".join([start, *b.split(".")[1:]])
            table = params_by_full.get(full or "")
            if table:
                for arg in node.args:
                    if arg.keyword and arg.keyword.value in table: kw_new[id(arg.keyword)] = table[arg.keyword.value]
    tree.visit(Visitor())
    member_new = {}
    for c, names in MEMBERS.get(module, {}).items(): member_new |= names
    all_members = {}
    for m in MEMBERS.values():
        for names in m.values(): all_members |= names
    class Renamer(cst.CSTTransformer):
        def leave_SimpleString(self, old, new):
            if id(old) not in str_new: return new
            pairs = str_new[id(old)]; pairs = pairs if isinstance(pairs, list) else [pairs]
            v = new.value
            for o, n in pairs: v = re.sub(rf"(?<![\w.]){o}\b", n, v)
            counts["strings"] += 1
            return new.with_changes(value=v)
        def leave_Name(self, old, new): return new.with_changes(value=new_name[id(old)]) if id(old) in new_name else (new.with_changes(value=kw_new[id(old)]) if id(old) in kw_new else new)
    tree = tree.visit(Renamer())
    return tree.code

def dotted_strings(text):
    def put(m):
        return PUBLIC_FULL[m[0]]
    if not PUBLIC_FULL: return text
    return PATTERN.sub(put, text)
PUBLIC_FULL = {f: f"{f.rpartition('.')[0]}.{n}" for f, n in PUBLIC.items()}
PATTERN = re.compile("|".join(rf"(?<![\w.]){re.escape(f)}(?!\w)" for f in sorted(PUBLIC_FULL, key=len, reverse=True))) if PUBLIC_FULL else None

MARK = "#CELL#"
for path in sorted(ROOT.glob("nbs/**/*.ipynb")):
    nb = json.loads(path.read_text()); module = module_of(path)
    code = [(k, "".join(c["source"])) for k, c in enumerate(nb["cells"]) if c["cell_type"] == "code"]
    good = []
    for k, s in code:
        try: ast.parse(s); good.append((k, s))
        except SyntaxError: pass
    joined = "".join(f"{MARK}{k}\n{s}\n" for k, s in good)
    try: out = transform(joined, module)
    except Exception as e:
        faults.append(f"{path.name}: {e!r}"[:300]); continue
    out = dotted_strings(out)
    parts = re.split(rf"^{MARK}(\d+)\n", out, flags=re.M)[1:]
    changed = False
    for k, s in zip(parts[::2], parts[1::2]):
        s = s[:-1]; cell = nb["cells"][int(k)]
        if s != "".join(cell["source"]): cell["source"] = s.splitlines(keepends=True); changed = True
    if changed: path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n"); counts["notebooks"] += 1
for path in sorted(ROOT.glob("tests/**/*.py")):
    s = path.read_text(); out = dotted_strings(transform(s, None))
    if out != s: path.write_text(out); counts["tests"] += 1
for path in [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("nbs/**/*.yaml"), *ROOT.glob("workflow/*")]:
    if path.is_file():
        s = path.read_text(errors="replace"); out = dotted_strings(s)
        if out != s: path.write_text(out)
print(counts); print("\n".join(faults))

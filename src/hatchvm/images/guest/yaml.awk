# Flattens the YAML that people write in cloud-init's user-data into lines `path<TAB>value` that a shell can read:
#
#     runcmd:                       runcmd.0 <TAB> echo hi
#       - echo hi                   runcmd.1.0 <TAB> ls
#       - [ls, -l]                  runcmd.1.1 <TAB> -l
#
# In a value `\` becomes `\\`, a line end `\n` and a tab `\t`; null is empty. An empty collection is no line at all.
# Understood: block and flow mappings and sequences, plain, quoted and block scalars, comments. Anything else (anchors,
# aliases, tags, `? ` keys, tabs as indentation, a second document) prints `line N: why` on stderr, nothing on stdout,
# and ends with status 1: half a configuration would be worse than none.
#
# `at` is the line being read. What may go on over lines (quotes, brackets) is read from `buf` at `pos`, and `pull` adds
# the next line to it.

{ sub(/\r$/, ""); line[NR] = $0 }

END {
    total = NR
    at = 1
    skip()
    if (line[at] ~ /^---/) {
        if (line[at] !~ /^---[ \t]*(#.*)?$/) fail("content after ---")
        at++
        skip()
    }
    if (!ended()) node("")
    skip()
    if (!ended()) fail("does not fit what is above it")
    if (line[at] ~ /^---/) fail("a second document")
    for (n = 1; n <= outputs && !failed; n++) print output[n]
    exit failed
}

function fail(why) {
    if (!failed) printf "line %d: %s\n", (at > total ? total : at), why >"/dev/stderr"
    failed = 1
    at = total + 1
}

function ended() { return at > total || line[at] ~ /^(---|\.\.\.)([ \t]|$)/ }

function indent_of(text) { match(text, /^ */); return RLENGTH }

function trimmed(text) { sub(/^[ \t]+/, "", text); sub(/[ \t]+$/, "", text); return text }

function is_blank(text) { return text ~ /^[ \t]*(#.*)?$/ }

function is_item(text) { return text ~ /^ *-([ \t]|$)/ }

# Moves on to the next line that is neither blank nor a comment.
function skip() {
    while (at <= total && is_blank(line[at])) at++
    if (line[at] ~ /^ *\t/) fail("a tab in the indentation")
}

function below(path, key) { return path == "" ? key : path "." key }

function emit(path, value) {
    gsub(/\\/, "&&", value)
    gsub(/\n/, "\\n", value)
    gsub(/\t/, "\\t", value)
    output[++outputs] = path "\t" value
}

# The node that starts on this line, at this line's indentation.
function node(path,    indent) {
    indent = indent_of(line[at])
    if (is_item(line[at])) sequence(indent, path)
    else if (has_key(substr(line[at], indent + 1))) mapping(indent, path)
    else value(substr(line[at], indent + 1), indent - 1, path)
}

function sequence(indent, path,    n) {
    for (n = 0; !ended() && indent_of(line[at]) == indent && is_item(line[at]); n++) {
        sub(/-/, " ", line[at])
        if (is_blank(line[at])) nested(indent, below(path, n))
        else if (is_item(line[at]) || has_key(trimmed(line[at]))) node(below(path, n))
        else value(trimmed(line[at]), indent, below(path, n))
        skip()
    }
    if (!ended() && indent_of(line[at]) > indent) fail("indented more than the items above it")
}

function mapping(indent, path,    key) {
    while (!ended() && indent_of(line[at]) == indent && !is_item(line[at])) {
        if (!has_key(substr(line[at], indent + 1))) { fail("neither `key: value` nor an item"); return }
        key = below(path, KEY)
        if (!is_blank(REST)) value(trimmed(REST), indent, key)
        else nested(is_item(line[next_line()]) ? indent - 1 : indent, key)
        skip()
    }
    if (!ended() && indent_of(line[at]) > indent) fail("indented more than the keys above it")
}

function next_line(    n) {
    for (n = at + 1; n <= total && is_blank(line[n]); n++) ;
    return n
}

# The value of a key or item that stands alone on its line: what follows, indented more than `indent`, or null.
function nested(indent, path) {
    at++
    skip()
    if (!ended() && indent_of(line[at]) > indent) node(path)
    else emit(path, "")
}

# True if `text` starts with a key; then KEY is the key and REST what follows its colon.
function has_key(text,    end) {
    if (text ~ /^["']/) {
        end = match(substr(text, 2), substr(text, 1, 1))
        if (!end) return 0
        KEY = substr(text, 2, end - 1)
        REST = substr(text, end + 2)
        if (REST !~ /^[ \t]*:([ \t]|$)/) return 0
        sub(/^[ \t]*:/, "", REST)
        return 1
    }
    if (text ~ /^[][{}#&*!|>%@`,]/ || text ~ /^[?-]([ \t]|$)/ || !match(text, /:([ \t]|$)/)) return 0
    KEY = substr(text, 1, RSTART - 1)
    REST = substr(text, RSTART + 1)
    sub(/[ \t]+$/, "", KEY)
    return KEY !~ /[ \t]#/
}

# A value that starts with `text` on this line, inside a collection indented by `indent`.
function value(text, indent, path) {
    if (text ~ /^[|>]/) block(text, indent, path)
    else if (text ~ /^[&*!%@`]/) fail("anchors, aliases and tags are not understood")
    else if (text ~ /^[?]([ \t]|$)/) fail("`? ` keys are not understood")
    else if (text ~ /^["'[{]/) {
        buf = text
        pos = 1
        flow(path)
        if (!failed && substr(buf, pos) !~ /^[ \t]*([ \t]#.*)?$/) fail("text after the end of the value")
        at++
    } else plain(text, indent, path)
}

function plain(text, indent, path,    whole, blanks, more) {
    whole = uncommented(text)
    more = whole == text
    for (at++; more && at <= total && !ended(); at++) {
        if (line[at] ~ /^[ \t]*$/) { blanks = blanks "\n"; continue }
        if (indent_of(line[at]) <= indent || line[at] ~ /^ *#/) break
        text = trimmed(line[at])
        whole = whole (blanks == "" ? " " : blanks) uncommented(text)
        more = uncommented(text) == text
        blanks = ""
    }
    if (whole ~ /:([ \t\n]|$)/) fail("a colon inside a plain value; put it in quotes")
    emit(path, plain_value(whole))
}

function uncommented(text) { sub(/[ \t]#.*/, "", text); return trimmed(text) }

function plain_value(text) { return text ~ /^(~|null|Null|NULL)$/ ? "" : text }

# A block scalar: `|` keeps line ends, `>` folds them; `-` and `+` say what happens to those at the end.
function block(header, indent, path,    keep, own, text, blanks, more, was_more, n, extra) {
    sub(/[ \t]+#.*/, "", header)
    if (header !~ /^[|>]([+-]?[1-9]?|[1-9][+-])$/) { fail("a block header that is not understood"); return }
    own = match(header, /[1-9]/) ? (indent < 0 ? 0 : indent) + substr(header, RSTART, 1) : 0
    for (at++; at <= total; at++) {
        if (line[at] ~ /^ *$/ && (!own || length(line[at]) <= own)) { blanks++; continue }
        if (!own) {
            own = indent_of(line[at])
            if (own <= indent) { own = 0; break }
        }
        if (indent_of(line[at]) < own) break
        extra = substr(line[at], own + 1)
        more = extra ~ /^[ \t]/
        if (header ~ /^[|]/ || n == 0 || more || was_more) blanks += (n > 0)
        else if (blanks == 0) text = text " "
        for (; blanks > 0; blanks--) text = text "\n"
        text = text extra
        was_more = more
        n++
    }
    if (header !~ /-/ && n) text = text "\n"
    if (header ~ /[+]/) for (; blanks > 0; blanks--) text = text "\n"
    emit(path, text)
}

# --- what may go on over several lines: reads from `buf` at `pos` ---

# Adds the next line to `buf`, folded: one line end is a space, the blank lines in between are line ends.
function pull(    blanks) {
    for (at++; at <= total && line[at] ~ /^[ \t]*$/; at++) blanks = blanks "\n"
    if (at > total) { fail("the end is missing of a quote or bracket that opens above"); return 0 }
    sub(/[ \t]+$/, "", buf)
    buf = buf (blanks == "" ? " " : blanks) trimmed(line[at])
    return 1
}

# The next character that is neither space nor comment, or "" after a failure.
function peek() {
    while (!failed) {
        if (substr(buf, pos) ~ /^[ \t\n]+#/ || (pos == 1 && buf ~ /^#/)) buf = substr(buf, 1, pos - 1)
        while (substr(buf, pos, 1) ~ /[ \t\n]/) pos++
        if (pos <= length(buf)) return substr(buf, pos, 1)
        pull()
    }
    return ""
}

function flow(path,    first) {
    first = peek()
    if (first == "[") flow_sequence(path)
    else if (first == "{") flow_mapping(path)
    else emit(path, flow_scalar())
}

function flow_sequence(path,    n) {
    pos++
    for (n = 0; peek() != "]" && !failed; n++) {
        flow(below(path, n))
        if (peek() == ",") pos++
        else if (peek() != "]") fail("a comma or ] is missing")
    }
    pos++
}

function flow_mapping(path,    key) {
    pos++
    while (peek() != "}" && !failed) {
        key = below(path, flow_scalar())
        if (peek() == ":") {
            pos++
            if (peek() ~ /[,}]/) emit(key, "")
            else flow(key)
        } else emit(key, "")
        if (peek() == ",") pos++
        else if (peek() != "}") fail("a comma or } is missing")
    }
    pos++
}

function flow_scalar(    first, start, text) {
    first = peek()
    if (first == "\"") return double_quoted()
    if (first == "'") return single_quoted()
    if (first ~ /[]&*!|>%@`,}]/ || failed) { fail("a value that is not understood in brackets"); return "" }
    for (start = pos; !match(substr(buf, pos), /[][{},]|:([ \t\n]|$)|[ \t\n]#/);) if (!pull()) return ""
    text = substr(buf, start, pos + RSTART - 1 - start)
    pos += RSTART - 1
    return plain_value(trimmed(text))
}

function single_quoted(    text, end) {
    for (pos++; !failed; pos = end + 2) {
        while (!(end = index(substr(buf, pos), "'"))) if (!pull()) return ""
        end += pos - 1
        text = text substr(buf, pos, end - pos)
        if (substr(buf, end + 1, 1) != "'") { pos = end + 1; return text }
        text = text "'"
    }
}

function double_quoted(    text, end) {
    for (pos++; !failed;) {
        while (!(end = match(substr(buf, pos), /["\\]/))) if (!pull()) return ""
        end += pos - 1
        text = text substr(buf, pos, end - pos)
        pos = end + 1
        if (substr(buf, end, 1) == "\"") return text
        text = text escape()
    }
}

# The character that an escape stands for; `pos` is behind its backslash.
function escape(    letter) {
    if (pos > length(buf)) {
        if (pull()) pos++
        return ""
    }
    letter = substr(buf, pos++, 1)
    if (letter ~ /["\\\/ ]/) return letter
    if (letter == "n") return "\n"
    if (letter == "t") return "\t"
    if (letter == "r") return "\r"
    if (letter == "e") return "\033"
    if (letter == "x") return code_point(2)
    if (letter == "u") return code_point(4)
    if (letter == "U") return code_point(8)
    fail("the escape \\" letter " is not understood")
}

# `digits` hexadecimal digits at `pos` as UTF-8.
function code_point(digits,    number, n, digit) {
    for (n = 0; n < digits; n++) {
        digit = index("0123456789abcdef", tolower(substr(buf, pos++, 1)))
        if (!digit) { fail("an escape with too few digits"); return "" }
        number = number * 16 + digit - 1
    }
    if (number < 128) return sprintf("%c", number)
    if (number < 2048) return sprintf("%c", 192 + number / 64) tail_byte(number)
    if (number < 65536) return sprintf("%c", 224 + number / 4096) tail_byte(number / 64) tail_byte(number)
    return sprintf("%c", 240 + number / 262144) tail_byte(number / 4096) tail_byte(number / 64) tail_byte(number)
}

function tail_byte(number) { return sprintf("%c", 128 + int(number) % 64) }

"""Every feature of the OpenAI endpoint, as the official Python client meets it. Start it with run.sh."""

import asyncio
import collections
import json
import time

import httpx
import openai
import pytest

LONG = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}


def said(answer, index=0):
    return answer.choices[index].message.content


def gather(stream):
    """A chat stream as (texts by choice, finish reasons by choice, chunks)."""
    chunks = list(stream)
    texts, reasons = collections.defaultdict(str), {}
    for chunk in chunks:
        for choice in chunk.choices:
            assert choice.index not in reasons, "nothing follows a choice's finish reason"
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return dict(texts), reasons, chunks


# --- Models ----------------------------------------------------------------------------------------------------------


def test_models_are_listed_and_described(client, model):
    assert model in [entry.id for entry in client.models.list()]
    entry = client.models.retrieve(model)
    assert (entry.id, entry.object, entry.owned_by) == (model, "model", "computepool")
    assert entry.created <= time.time()
    assert entry.computepool["active"] is True
    layers = [part["layers"] for part in entry.computepool["served_by"]]
    assert len(layers) == 2 and layers[0].startswith("0-"), f"two shards hold the layers: {layers}"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("no/such-model")
    assert raised.value.code == "model_not_found"


# --- Chat ------------------------------------------------------------------------------------------------------------


def test_a_chat_is_answered(ask, model):
    answer = ask("What is a shard?", max_tokens=64)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.model == model and answer.system_fingerprint.startswith("fp_")
    assert abs(answer.created - time.time()) < 60
    choice = answer.choices[0]
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "stop")
    assert choice.message.content.strip() and choice.logprobs is None and choice.message.refusal is None
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 64
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    extra = answer.computepool
    assert extra["privacy"] in ("own_machines", "public_pool") and extra["privacy_notice"]
    assert len(extra["served_by"]) == 2 and len(extra["requests"]) == 1
    assert answer._request_id.startswith("req_")


def test_every_role_and_parts_of_text_are_read(client, model):
    def tokens(messages):
        return client.chat.completions.create(model=model, messages=messages, max_tokens=1).usage.prompt_tokens

    one = [{"role": "user", "content": "one\ntwo"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    assert tokens(one) == tokens(parts), "parts are joined by a new line"
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What is a node?"},
    ]
    developer = [{**talk[0], "role": "developer"}, *talk[1:]]
    assert tokens(talk) == tokens(developer) > tokens(one), "developer is the newer name of system"


def test_unknown_and_irrelevant_parameters_are_passed_over(ask):
    plain = said(ask())
    options = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "tools": []}
    assert said(ask(**options, response_format={"type": "text"}, extra_body={"from_the_future": [1]})) == plain


# --- Streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_says_what_the_whole_answer_says(ask):
    whole = ask(max_tokens=64)
    texts, reasons, chunks = gather(ask(max_tokens=64, stream=True))
    assert texts == {0: said(whole)} and reasons == {0: whole.choices[0].finish_reason}
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].object == "chat.completion.chunk"
    assert len(chunks) > 4, "token by token, not at once"
    assert all(chunk.usage is None for chunk in chunks)
    assert len(chunks[0].computepool["served_by"]) == 2


def test_usage_in_a_stream(ask):
    whole = ask()
    _, _, chunks = gather(ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])


def test_the_clients_own_stream_helper(client, model):
    messages = [{"role": "user", "content": "What is a shard?"}]
    with client.chat.completions.stream(model=model, messages=messages, temperature=0, max_tokens=100) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == said(final) and final.choices[0].finish_reason == "stop"


def test_the_wire_format_of_a_stream(server, model):
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 8}
    with httpx.stream("POST", f"{server.url}/chat/completions", json=body, headers=server.headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith(("data: ", ":")) for line in lines)
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert all(json.loads(chunk)["object"] == "chat.completion.chunk" for chunk in data[:-1])


# --- Choices and seeds -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_text(ask):
    warm = {"temperature": 1.2, "max_tokens": 24}
    first = [said(ask(seed=seed, **warm)) for seed in (1, 2, 3, -9)]
    assert [said(ask(seed=seed, **warm)) for seed in (1, 2, 3, -9)] == first
    assert len(set(first)) > 1, "other seeds give other texts"
    # Hot and long: two draws do not agree by chance.
    unseeded = {said(ask(**LONG, temperature=2)) for _ in range(2)}
    assert len(unseeded) > 1, "without a seed each request draws its own"


def test_n_choices(ask):
    options = {"n": 4, "seed": 11, "temperature": 1.5, "max_tokens": 16}
    whole = ask(**options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in whole.choices}) > 1, "choices differ"
    texts, reasons, chunks = gather(ask(stream=True, **options))
    assert texts == {choice.index: choice.message.content for choice in whole.choices}, "streamed or whole"
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    order = [choice.index for chunk in chunks for choice in chunk.choices]
    assert order != sorted(order), "they are merged as they come"
    assert said(ask(**options | {"n": 1})) == said(whole), "choice 0 is the request itself"
    assert whole.usage.prompt_tokens == ask(n=1).usage.prompt_tokens, "the prompt counts once"
    assert len(whole.computepool["requests"]) == 4


# --- Where answers end -----------------------------------------------------------------------------------------------


def test_max_tokens(ask):
    for limit in (1, 5):
        answer = ask(max_tokens=limit, extra_body={"ignore_eos": True})
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (limit, "length")
    newer = ask(max_completion_tokens=3, max_tokens=9, extra_body={"ignore_eos": True})
    assert newer.usage.completion_tokens == 3, "max_completion_tokens wins"


def test_the_default_length_ends_within_the_context(ask, context):
    answer = ask("Hi", max_tokens=openai.omit, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens <= context


def test_stop_strings(ask):
    text = said(ask(max_tokens=40))
    middle = len(text) // 2
    for stop in (text[middle : middle + 1], text[middle : middle + 7], text[middle - 5 : middle + 9]):
        expected = text[: text.index(stop)]
        whole = ask(max_tokens=40, stop=stop)
        assert (said(whole), whole.choices[0].finish_reason) == (expected, "stop"), f"stop={stop!r}"
        texts, reasons, _ = gather(ask(max_tokens=40, stop=stop, stream=True))
        assert (texts, reasons) == ({0: expected}, {0: "stop"}), f"stop={stop!r}"
    several = ask(max_tokens=40, stop=["never said \N{SNOWMAN}", text[middle:], text[4:7]])
    assert said(several) == text[: text.index(text[4:7])], "whichever comes first"
    unmet = ask(max_tokens=40, stop=text[-1] + "\N{SNOWMAN}")
    assert said(unmet) == text, "what only looked like a stop string is kept"


# --- Probabilities ---------------------------------------------------------------------------------------------------


def check_tokens(tokens, text, top):
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == top
        values = [alternative.logprob for alternative in token.top_logprobs]
        assert values == sorted(values, reverse=True), "most likely first"
        if top:
            assert token.top_logprobs[0].token == token.token, "greedy takes the most likely"
            assert token.logprob == pytest.approx(values[0], abs=1e-6)


def test_chat_logprobs(ask):
    for top in (0, 1, 20):
        answer = ask(logprobs=True, top_logprobs=top)
        check_tokens(answer.choices[0].logprobs.content, said(answer), top)
    assert ask(logprobs=False).choices[0].logprobs is None


def test_logprobs_in_a_stream(ask):
    texts, _, chunks = gather(ask(logprobs=True, top_logprobs=2, stream=True))
    parts = [choice.logprobs.content for chunk in chunks for choice in chunk.choices if choice.logprobs]
    tokens = [token for part in parts for token in part]
    check_tokens(tokens, texts[0], 2)
    whole = ask(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [token.logprob for token in tokens] == pytest.approx([token.logprob for token in whole], abs=1e-3)


def test_logprobs_end_where_a_stop_string_begins(ask):
    text = said(ask(max_tokens=40))
    stop = text[len(text) // 2 : len(text) // 2 + 6]
    answer = ask(max_tokens=40, stop=stop, logprobs=True)
    joined = b"".join(bytes(token.bytes) for token in answer.choices[0].logprobs.content).decode()
    assert joined.startswith(said(answer)) and stop not in joined


def test_completion_logprobs(go_on):
    choice = go_on(logprobs=3).choices[0]
    lists = choice.logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset) > 0
    assert "".join(lists.tokens) == choice.text
    for token, logprob, top, offset in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, lists.text_offset):
        assert choice.text[offset : offset + len(token)] == token
        assert logprob == max(top.values()) and top[token] == logprob and len(top) == 3


# --- What changes the choice of tokens -------------------------------------------------------------------------------


def test_logit_bias_forces_and_bans_tokens(go_on):
    first, second = 300, 301
    names = [choice.text for choice in go_on([[first], [second]], echo=True, max_tokens=1).choices]
    texts = [go_on([[token]], max_tokens=3, logit_bias={str(token): 100}).choices[0].text for token in (first, second)]
    for name, text in zip(names, texts):
        assert text and name.startswith(text[: len(text) // 3]), "a forced token is all there is"
    assert len(set(texts)) == 2
    banned = go_on([[first]], max_tokens=3, logit_bias={str(first): -100, str(second): 100}).choices[0].text
    assert banned == texts[1]
    natural = go_on(max_tokens=1, logprobs=1).choices[0].text
    ids = {str(token): -100 for token in ids_of(go_on, natural)}
    assert go_on(max_tokens=1, logit_bias=ids).choices[0].text != natural, "the most likely token is banned"


def ids_of(go_on, text):
    """The ids of tokens that say `text`: tried one by one, because the API tells no ids."""
    found = []
    for begin in range(0, 1024, 64):
        ids = list(range(begin, begin + 64))
        echoed = go_on([[token] for token in ids], echo=True, max_tokens=1, logit_bias={"300": 100}).choices
        forced = go_on([[300]], max_tokens=1, logit_bias={"300": 100}).choices[0].text
        found += [token for token, choice in zip(ids, echoed) if choice.text == text + forced]
    assert found, f"no token says {text!r}"
    return found


def test_penalties_change_how_often_words_recur(ask):
    def most_common(**options):
        tokens = ask(logprobs=True, **LONG | options).choices[0].logprobs.content
        return collections.Counter(token.token for token in tokens).most_common(1)[0][1]

    for penalty in ("frequency_penalty", "presence_penalty"):
        more, none = most_common(**{penalty: -2}), most_common()
        assert more >= none, f"a negative {penalty} repeats"
    assert most_common(frequency_penalty=2) < most_common(frequency_penalty=-2)
    strong = {"extra_body": {"ignore_eos": True, "repetition_penalty": 5}}
    assert most_common(**strong) < most_common(), "an extension"


def test_narrow_sampling_is_greedy(ask):
    greedy = said(ask())
    hot = {"temperature": 2, "seed": 5}
    assert said(ask(**hot, top_p=0.00001)) == greedy
    assert said(ask(**hot, top_p=0)) == greedy
    for extension in ({"top_k": 1}, {"min_p": 1}):
        assert said(ask(**hot, extra_body=extension)) == greedy, extension
    assert said(ask(**hot)) != greedy


# --- Plain completions -----------------------------------------------------------------------------------------------


def test_prompts_as_text_lists_and_tokens(go_on):
    one = go_on("A shard is")
    assert one.object == "text_completion" and one.id.startswith("cmpl-") and one.choices[0].text
    two = go_on(["A shard is", "A coalition is"])
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text
    assert two.usage.prompt_tokens > one.usage.prompt_tokens
    several = go_on(["A shard is", "A coalition is"], n=2)
    assert [choice.text for choice in several.choices] == [two.choices[i].text for i in (0, 0, 1, 1)]
    ids = [5, 300, 7]
    from_ids = go_on(ids)
    assert from_ids.usage.prompt_tokens == 3, "tokens are taken as they are"
    assert go_on([ids, [9]]).choices[0].text == from_ids.choices[0].text


def test_echo_and_streams_of_completions(go_on):
    whole = go_on()
    assert go_on(echo=True).choices[0].text == "A shard is" + whole.choices[0].text
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(go_on(["A shard is", "A coalition is"], **options))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    texts, reasons = collections.defaultdict(str), {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    both = go_on(["A shard is", "A coalition is"]).choices
    assert dict(texts) == {choice.index: choice.text for choice in both}
    assert reasons == {choice.index: choice.finish_reason for choice in both}


def test_text_of_any_script_survives(go_on):
    for text in ("Grüße aus Köln", "日本語のテキスト", "🙂🚀 👩‍👩‍👧", "नमस्ते", "\u202eRTL العربية", "tab\tline\nnull\0end"):
        echoed = go_on(text, echo=True, max_tokens=1).choices[0].text
        assert echoed.startswith(text)


def test_characters_split_over_tokens_come_whole(client, model, go_on):
    # Random tokens of a byte vocabulary make broken characters: every chunk must still be text, and the chunks
    # together what the whole answer is.
    options = {"temperature": 2, "seed": 3, "max_tokens": 80, "extra_body": {"ignore_eos": True}}
    whole = go_on("🙂🚀é", **options).choices[0].text
    stream = client.completions.create(model=model, prompt="🙂🚀é", stream=True, **options)
    assert "".join(choice.text for chunk in stream for choice in chunk.choices) == whole


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 5}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": "much"}, "frequency_penalty"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"seed": "x"}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
    ],
)
def test_bad_parameters_are_named(client, model, change, param):
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]} | change
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**body)
    assert raised.value.status_code == 400 and raised.value.param == param
    assert raised.value.type == "invalid_request_error" and raised.value.body["message"]


def test_completions_refuse_what_they_cannot_do(go_on):
    for change in ({"suffix": "x"}, {"best_of": 3}, {"echo": True, "logprobs": 1}, {"logprobs": 6}):
        with pytest.raises(openai.BadRequestError) as raised:
            go_on(**change)
        assert raised.value.param in change
    for prompt in ([], [[]], [10**6], [[5], []], {"a": 1}):
        with pytest.raises(openai.BadRequestError) as raised:
            go_on(prompt)
        assert raised.value.param == "prompt"


def test_a_prompt_longer_than_the_context(ask, go_on, context):
    for call in (lambda: ask("word " * (2 * context)), lambda: go_on([5] * context), lambda: ask(max_tokens=context)):
        with pytest.raises(openai.BadRequestError) as raised:
            call()
        assert raised.value.code == "context_length_exceeded"
        assert str(context) in raised.value.body["message"]


def test_wrong_keys_models_routes_and_bodies(server, client, ask, model):
    with pytest.raises(openai.AuthenticationError) as raised:
        server.client(api_key="wrong").models.list()
    assert raised.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as raised:
        ask(model="no-such-model")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="x")
    url = f"{server.url}/chat/completions"
    broken = httpx.post(url, content='{"model": oops', headers=server.headers | {"Content-Type": "application/json"})
    assert broken.status_code == 400 and "line 1 column 11" in broken.json()["error"]["message"]
    assert httpx.post(url, content="hi", headers=server.headers).status_code == 415
    large = httpx.post(url, json={"model": model, "padding": "x" * (3 << 20)}, headers=server.headers)
    assert large.status_code == 413
    assert httpx.get(url, headers=server.headers).status_code == 405
    paths = httpx.get(f"{server.root}/openapi.json").json()["paths"]
    assert {"/v1/models", "/v1/chat/completions", "/v1/completions"} <= paths.keys()


# --- Many clients, and clients that leave ----------------------------------------------------------------------------


def test_eight_clients_at_once(server, model, ask):
    questions = [f"What is {thing}?" for thing in
                 ("a shard", "a node", "a coalition", "a session", "a voucher", "an operator", "a peer", "a pool")]
    alone = [said(ask(question)) for question in questions]

    async def everybody():
        client = openai.AsyncOpenAI(base_url=server.url, api_key=server.key, max_retries=0)

        async def one(question):
            messages = [{"role": "user", "content": question}]
            options = {"model": model, "temperature": 0, "max_tokens": 24, "stream": True}
            stream = await client.chat.completions.create(messages=messages, **options)
            return "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])

        return await asyncio.gather(*(one(question) for question in questions))

    assert asyncio.run(everybody()) == alone, "a batch does not change an answer"


def test_a_client_that_leaves_frees_its_sequences(server, ask):
    before = server.gauge("computepool_tokens_total")
    with ask("Tell me everything.", n=8, stream=True, max_tokens=400, extra_body={"ignore_eos": True}) as stream:
        for _ in range(16):
            next(stream)
        assert server.gauge("computepool_sequences") == 8
    server.wait_for("computepool_sequences", 0, seconds=2)
    sampled = server.gauge("computepool_tokens_total") - before
    assert sampled < 3000, f"{sampled} tokens were sampled for nobody"


def test_a_client_that_gives_up_frees_what_runs_and_what_waits(server, ask):
    # More than the cache holds at once: some of the choices wait for room when their client goes.
    impatient = {"timeout": 0.3, "max_tokens": 900, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APITimeoutError):
        ask("Tell me everything.", n=8, **impatient)
    server.wait_for("computepool_queue_waiting", 0, seconds=2)
    server.wait_for("computepool_sequences", 0, seconds=2)
    assert said(ask()), "and the next request is served"

defmodule Barytherium.BenchTest do
  # It changes the level of the log and the handling of signals, and captures stderr.
  use Barytherium.ClientCase, async: false

  import ExUnit.CaptureIO

  alias Barytherium.{Bench, Directory}

  setup do
    %{level: level} = :logger.get_primary_config()
    on_exit(fn -> :logger.set_primary_config(:level, level) end)
  end

  defp bench(args) do
    run = fn -> Bench.run(args, "bench") end
    {{status, stdout}, stderr} = with_io(:stderr, fn -> with_io(run) end)
    {status, stdout, stderr}
  end

  test "a broker in this VM, as a table" do
    args = ~w(--seconds 1 --ack client-individual --connections 2)
    assert {0, table, "Measuring for 1 s ...\n"} = bench(args)

    assert table =~
             ~r{\Apublished  [\d,]+ messages, [\d,]+ messages/s, .*B/s\nconsumed   [\d,]+ messages}

    refute table =~ "latency"
  end

  test "a fixed rate, as JSON and a picture" do
    svg = Path.join(Directory.make!(), "bench.svg")
    args = ["--seconds", "1", "--rate", "200", "--size", "1500", "--json", "--svg", svg]
    assert {0, json, "Measuring for 1 s ...\n"} = bench(args)
    assert [_all, published] = Regex.run(~r/"published":(\d+),/, json)
    # It is never faster than told.
    assert String.to_integer(published) in 1..200
    assert json =~ ~r/"latency_us":{"p50":\d+,"p99":\d+,"p99.9":\d+,"max":\d+}}\n\z/
    assert json =~ ~s("size":1500)
    assert File.read!(svg) =~ ~r/<svg .*<rect .*<\/svg>/s
  end

  test "a broker that is not there is an error" do
    {listener, url} = broker()
    Peer.close(listener)
    text = "Error: cannot connect to #{url}: connection refused (econnrefused)\n"
    assert {1, "", ^text} = bench([url])
  end

  test "a broker that refuses is told once, with a hint" do
    {listener, url} = broker()
    task = Task.async(fn -> bench([url]) end)
    {peer, _connect} = accept(listener)
    reply(peer, :error, [{"message", "no access"}])
    Peer.close(peer)
    assert {1, "", stderr} = Task.await(task)

    assert stderr =~
             ~r/\AError: cannot connect to #{url}: the broker says: no access\nThe virtual/

    assert [_before, _after] = String.split(stderr, "no access")
  end

  test "a picture that cannot be written is told before anything is measured" do
    svg = Path.join(Directory.make!(), "none/bench.svg")
    assert {1, "", stderr} = bench(["--svg", svg])
    assert stderr =~ "Error: cannot write to #{svg}: no such file or directory\n"
  end

  test "help, and mistakes" do
    assert {0, help, ""} = bench(["--help"])
    {:ok, options} = File.read("lib/barytherium/bench/options.ex")

    for [_all, name] <- Regex.scan(~r/^    (\w+): :(?:boolean|integer|string)/m, options),
        name not in ["help", "persistent"],
        do: assert(help =~ "--" <> name)

    for {args, text} <- [
          {["http://h"], "not a URL"},
          {["stomp://h", "stomp://i"], "only one URL"},
          {["--ack", "never"], "--ack is auto, client or client-individual"},
          {["--size", "7"], "--size is from 8"},
          {["--rte", "1"], "unknown option --rte"}
        ] do
      assert {2, "", stderr} = bench(args)
      assert stderr =~ text
    end
  end
end

defmodule Barytherium.SendTest do
  # It changes the level of the log and the handling of signals, and captures stderr.
  use Barytherium.ClientCase, async: false

  import ExUnit.CaptureIO

  alias Barytherium.{Directory, Send, TestBroker}
  alias Barytherium.Tail.Terminal

  setup do
    %{level: level} = :logger.get_primary_config()
    on_exit(fn -> :logger.set_primary_config(:level, level) end)
    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    client = start_supervised!({Client, url: url})
    {:ok, _subscription} = Client.subscribe(client, "/queue/a", ack: :auto)
    TestBroker.await_subscription(broker, "/queue/a")
    %{url: url <> "/queue/a"}
  end

  # `{status, stdout, stderr}`
  defp send_with(args, terminal \\ %Terminal{live: false, colors: false}) do
    run = fn -> Send.run(args, "send", terminal) end
    {{status, stdout}, stderr} = with_io(:stderr, fn -> with_io(run) end)
    {status, stdout, stderr}
  end

  # The task, with `input` as its stdin: `{status, output}`.
  defp task(args, input) do
    path = Path.join(Directory.make!(), "stdin")
    File.write!(path, input)
    command = ~s(mix barytherium.send "$@" < #{path} 2>&1)
    options = [env: [{"MIX_ENV", "test"}]]
    {output, status} = System.cmd("sh", ["-c", command, "sh" | args], options)
    {status, output}
  end

  defp frames(count) when count <= 0, do: []

  defp frames(count) do
    assert_receive {:barytherium, :messages, {frames, _subscription}}, 5_000
    frames ++ frames(count - length(frames))
  end

  test "a text, with headers, persistent", %{url: url} do
    args = [url, "hello", "--header", "a:b", "--content-type", "text/plain"]
    assert {0, "", stderr} = send_with(args)
    assert stderr =~ "Barytherium.TestBroker has confirmed 1 message, 5 B of bodies"
    [frame] = frames(1)
    assert frame.body == "hello"

    for header <- [{"a", "b"}, {"content-type", "text/plain"}, {"persistent", "true"}],
        do: assert(header in frame.headers)

    assert {0, "", _stderr} = send_with([url, "gone", "--no-persistent"])
    refute List.keymember?(hd(frames(1)).headers, "persistent", 0)
  end

  test "stdin, a file, and gzip", %{url: url} do
    assert {0, _output} = task([url, "-"], <<"from\nstdin\n", 255>>)
    assert [%{body: <<"from\nstdin\n", 255>>}] = frames(1)
    path = Path.join(Directory.make!(), "body")
    File.write!(path, <<0, 255, 10>>)
    assert {0, "", _stderr} = send_with([url, "@" <> path])
    assert [%{body: <<0, 255, 10>>}] = frames(1)
    assert {0, "", _stderr} = send_with([url, "small", "--gzip"])
    assert [%{body: gzip} = frame] = frames(1)
    assert :zlib.gunzip(gzip) == "small"
    assert {"content-encoding", "gzip"} in frame.headers
  end

  test "lines, many, and not faster than told", %{url: url} do
    lines = for n <- 1..3_000, do: "line #{n}"
    assert {0, output} = task([url, "--lines"], Enum.join(lines, "\n"))
    assert output =~ "confirmed 3,000 messages"
    assert Enum.map(frames(3_000), & &1.body) == lines

    started = System.monotonic_time(:millisecond)
    assert {0, "", _stderr} = send_with([url, "x", "--count", "30", "--rate", "100"])
    assert System.monotonic_time(:millisecond) - started >= 250
    assert length(frames(30)) == 30
  end

  test "a terminal sees how far it is", %{url: url} do
    terminal = %Terminal{live: true, colors: true}
    assert {0, "", stderr} = send_with([url, "x", "--count", "600"], terminal)
    assert stderr =~ "[########............] 256 messages, "
    assert stderr =~ "600 messages"
  end

  test "what is not confirmed is an error" do
    {listener, url} = broker()
    task = Task.async(fn -> send_with([url <> "/queue/a", "x", "--count", "2"]) end)
    peer = accept_connected(listener)
    {first, "x"} = expect(peer, :send)
    {_second, "x"} = expect(peer, :send)
    reply(peer, :receipt, [{"receipt-id", first["receipt"]}])
    reply(peer, :error, [{"message", "the queue is full"}])
    Peer.close(peer)
    assert {1, "", stderr} = Task.await(task)
    assert stderr =~ "Error: not confirmed: the broker says: the queue is full"
    assert stderr =~ "has confirmed 1 message"
  end

  test "a broker that is not there is told once" do
    {listener, url} = broker()
    Peer.close(listener)
    assert {1, "", stderr} = send_with([url <> "/queue/a", "x"])
    assert stderr == "Error: cannot connect to #{url}: connection refused (econnrefused)\n"
  end

  test "a broker that refuses gives a hint" do
    {listener, url} = broker("me:secret@")
    task = Task.async(fn -> send_with([url <> "/queue/a?host=other", "x"]) end)
    {peer, _connect} = accept(listener)
    reply(peer, :error, [{"message", "no access"}])
    Peer.close(peer)
    assert {1, "", stderr} = Task.await(task)
    assert stderr =~ ~r/\AError: cannot connect to [^@]*: the broker says: no access\n/
    assert [_before, _after] = String.split(stderr, "no access")
    assert stderr =~ "The virtual host was other; ?host=name"
    refute stderr =~ "secret"
  end

  test "help, and mistakes", %{url: url} do
    assert {0, help, ""} = send_with(["--help"])
    assert help =~ "send URL BODY"
    {:ok, options} = File.read("lib/barytherium/send/options.ex")

    for [_all, name] <- Regex.scan(~r/^    (\w+): :(?:boolean|integer|string|keep)/m, options),
        name != "help",
        do: assert(help =~ "--" <> String.replace(name, "_", "-"))

    for {args, text} <- [
          {[], "the first argument is not a URL"},
          {["stomp://localhost", "x"], "no destination: stomp://host/queue/a"},
          {[url], "no BODY"},
          {[url, "a", "b"], "more than one BODY"},
          {[url, "a", "--lines"], "--lines reads the messages from stdin"},
          {[url, "a", "--header", "receipt:1"], "--header is NAME:VALUE"},
          {[url, "a", "--count", "0"], "--count cannot be 0"},
          {["stomp+ssl://h/a", "a", "--cacertfile", "/no"], "there is no file /no"},
          {[url, "--lines", "--count", "2"], "--count is for a BODY"},
          {[url, "a", "--certfile", "mix.exs"],
           "--certfile is for TLS, and the URL begins with stomp://"},
          {[url, "a", "--insecure"], "--insecure is for TLS"},
          {[url <> "?vhost=a", "a"],
           "?vhost= is nothing that a URL can say: ?host=name is the virtual host"},
          {[url, "a", "--prsistent"], "unknown option --prsistent"}
        ] do
      assert {2, "", stderr} = send_with(args)
      assert stderr =~ text
    end

    assert {1, "", stderr} = send_with([url, "@/no/file"])
    assert stderr =~ "cannot read /no/file: no such file or directory"
  end
end

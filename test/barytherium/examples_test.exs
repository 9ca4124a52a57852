defmodule Barytherium.ExamplesTest do
  @moduledoc "Runs the projects in `examples`, each with the commands of its README."
  use Barytherium.ClientCase, async: false

  alias Barytherium.{Recording, TestBroker}

  # It waits for other programs most of the time, see `script/test`.
  @moduletag :programs
  @moduletag timeout: 60_000
  @examples ~w(supervised_consumer darwin_feed ordered_fan_out publisher)

  # One build for all examples, so that this library is compiled only once.
  setup_all do
    build = Barytherium.Directory.path()
    on_exit(fn -> File.rm_rf!(build) end)

    for name <- @examples do
      options = [cd: folder(name), env: environment(build), stderr_to_stdout: true]
      {output, status} = System.cmd("mix", ["compile", "--warnings-as-errors"], options)
      assert status == 0, output
    end

    %{build: build}
  end

  test "each says how to start a broker if STOMP_HOST is not set", %{build: build} do
    for name <- @examples do
      example = example(name, build, [{"STOMP_HOST", nil}])
      shown = lines_until(example, "STOMP_HOST=localhost")
      assert Enum.join(shown, "\n") =~ "STOMP_HOST is not set. Start a broker"
      assert_exit(example, 1)
      for command <- commands(name), do: assert(("    " <> command) in shown)
    end
  end

  describe "supervised_consumer" do
    test "acknowledges, and goes on when the broker was away", %{build: build} do
      {listener, _url} = broker()
      port = Peer.port(listener)
      example = example("supervised_consumer", build, port)

      peer = accept_connected(listener)
      {%{"id" => id, "destination" => "/queue/orders"}, _body} = confirm(peer, :subscribe)
      lines_until(example, "connected to stomp://localhost:#{port}")
      message(peer, id, "first")
      lines_until(example, "order first")
      assert {%{"id" => "a-first"}, _body} = expect(peer, :ack)

      Peer.close(listener)
      Peer.close(peer)
      lines_until(example, "not connected: the connection was closed (closed)")
      start_supervised!({TestBroker, port: port, rate: 10, body: "second"})
      lines_until(example, "connected to stomp://localhost:#{port}")
      lines_until(example, "order second")

      stop_supervised!(TestBroker)
      lines_until(example, "not connected: the connection was closed (closed)")
      lines_until(example, "not connected: connection refused (econnrefused)")
      feed("supervised_consumer", build, port)
      lines_until(example, ~r/order \d+/)
    end
  end

  describe "darwin_feed" do
    test "prints the departures in compressed messages, and whether the feed is well", %{
      build: build
    } do
      port = Barytherium.Broker.free_port()
      feed = feed("darwin_feed", build, port)
      lines_until(feed, "A feed listens on port #{port}")
      example = example("darwin_feed", build, port)
      lines_until(example, ~r/^C\d+ leaves ABBOTSW at \d\d:\d\d$/)
      lines_until(example, ~r/^-- \d+ messages, 0 missing, 99 % handled within \d+ us; :ok$/)
      lines_until(example, ~r/^-- \d+ messages, 2 missing, 99 % handled within \d+ us; :ok$/)
    end

    test "skips a message that is not such XML", %{build: build} do
      {listener, _url} = broker()
      example = example("darwin_feed", build, Peer.port(listener))
      peer = accept_connected(listener)
      {%{"id" => id, "ack" => "auto"}, _body} = confirm(peer, :subscribe)
      message(peer, id, "not compressed")
      message(peer, id, :zlib.gzip("no XML"))
      message(peer, id, binary_part(:zlib.gzip("<Pport/>"), 0, 20))
      message(peer, id, recorded())
      lines_until(example, "C10007 leaves ABBOTSW at 12:02")
    end

    defp recorded do
      recording = Recording.stream("examples/darwin_feed/feed.rec")

      {_time, frame} =
        Enum.find(recording, fn {_time, frame} -> Frame.header(frame, "train") == "C10007" end)

      frame.body
    end
  end

  describe "ordered_fan_out" do
    setup %{build: build} do
      {listener, _url} = broker()
      example = example("ordered_fan_out", build, Peer.port(listener))
      peer = accept_connected(listener)
      {subscribe, _body} = confirm(peer, :subscribe)
      assert %{"ack" => "client", "prefetch-count" => "20"} = subscribe
      %{listener: listener, peer: peer, example: example, id: subscribe["id"]}
    end

    test "acknowledges in the order of the queue", %{peer: peer, example: example, id: id} do
      for body <- ~w(1000 0 1), do: message(peer, id, body)
      lines = lines_until(example, "acknowledged up to")

      assert Enum.filter(lines, &(&1 =~ "arrived")) == [
               "arrived: 1000",
               "arrived: 0",
               "arrived: 1"
             ]

      assert "done: 0" in lines and "done: 1" in lines
      assert Enum.take(lines, -2) == ["done: 1000", "acknowledged up to: 1"]
      # It is the first and only acknowledgement.
      assert {%{"id" => "a-1"}, _body} = expect(peer, :ack)
      assert_silent(peer)

      {:os_pid, pid} = Port.info(example, :os_pid)
      kill("TERM", pid)
      disconnect(peer)
      assert_receive {^example, {:exit_status, _status}}
    end

    test "moves a message whose worker fails", %{peer: peer, example: example, id: id} do
      message(peer, id, "no number")
      assert {%{"destination" => "/queue/orders.failed"}, "no number"} = expect(peer, :send)
      assert {%{"id" => "a-no number"}, _body} = expect(peer, :ack)
      lines_until(example, "acknowledged up to: no number")
    end

    test "leaves messages of an earlier connection to the broker", context do
      %{peer: peer, listener: listener, example: example, id: id} = context
      message(peer, id, "700")
      lines_until(example, "arrived: 700")
      Peer.close(peer)
      lines_until(example, "will be delivered again: 700")

      peer = accept_connected(listener)
      {%{"id" => id}, _body} = confirm(peer, :subscribe)
      message(peer, id, "7")
      lines_until(example, "acknowledged up to: 7")
      assert {%{"id" => "a-7"}, _body} = expect(peer, :ack)
    end
  end

  describe "publisher" do
    test "publishes everything in order", %{build: build} do
      port = TestBroker.port(start_supervised!(TestBroker))
      client = start_supervised!({Client, url: "stomp://127.0.0.1:#{port}", listener: self()})
      assert_receive {:barytherium, :client, {{:connected, _info}, ^client}}
      {:ok, _subscription} = Client.subscribe(client, "/queue/orders", ack: :auto)

      example = example("publisher", build, port)
      lines_until(example, "The broker has confirmed 1000 messages.")
      assert_exit(example, 0)
      assert bodies(client, 1_000) == for(n <- 1..1_000, do: to_string(n))
    end

    test "publishes again what was not confirmed", %{build: build} do
      {listener, _url} = broker()
      port = [{"STOMP_PORT", to_string(Peer.port(listener))}]
      example = run(["run", "-e", "Publisher.run(5)"], folder("publisher"), build, port)

      peer = accept_connected(listener)
      for body <- ~w(1 2), do: assert({_headers, ^body} = confirm(peer, :send))
      for body <- ~w(3 4 5), do: assert({_headers, ^body} = expect(peer, :send))
      Peer.close(peer)

      lines_until(
        example,
        "3 messages are not confirmed: the connection ended before the broker's answer (unconfirmed)"
      )

      peer = accept_connected(listener)
      for body <- ~w(3 4 5), do: assert({_headers, ^body} = confirm(peer, :send))
      lines_until(example, "The broker has confirmed 5 messages.")
      assert_exit(example, 0)
    end
  end

  defp bodies(_client, 0), do: []

  defp bodies(client, count) do
    assert_receive {:barytherium, :messages, {frames, _subscription}}
    Enum.map(frames, & &1.body) ++ bodies(client, count - length(frames))
  end

  defp folder(name), do: Path.expand(Path.join("examples", name))

  # The command for the broker, and that for the example.
  defp commands(name) do
    readme = name |> folder() |> Path.join("README.md") |> File.read!()
    [_broker, _example] = for "    " <> command <- String.split(readme, "\n"), do: command
  end

  defp feed(name, build, port) do
    ["mix " <> args, _example] = commands(name)
    run(OptionParser.split(args), File.cwd!(), build, [{"STOMP_PORT", to_string(port)}])
  end

  defp example(name, build, port) when is_integer(port),
    do: example(name, build, [{"STOMP_PORT", to_string(port)}])

  defp example(name, build, variables) do
    [_broker, "STOMP_HOST=localhost mix " <> args] = commands(name)
    run(OptionParser.split(args), folder(name), build, variables)
  end

  # Starts Mix. Its output comes line by line, as messages.
  defp run(args, directory, build, variables) do
    environment = [{"STOMP_HOST", "localhost"} | environment(build)] ++ variables
    # A command that hangs must not outlive the test.
    args = ["50", "mix" | args]
    options = [:binary, :exit_status, :stderr_to_stdout, line: 10_000, cd: directory, args: args]
    options = options ++ [env: Enum.map(environment, &port_variable/1)]
    port = Port.open({:spawn_executable, System.find_executable("timeout")}, options)
    {:os_pid, pid} = Port.info(port, :os_pid)
    on_exit(fn -> kill("KILL", pid) end)
    port
  end

  defp port_variable({name, nil}), do: {to_charlist(name), false}
  defp port_variable({name, value}), do: {to_charlist(name), to_charlist(value)}

  # With the same target directory the native library does not have to be built again.
  defp environment(build) do
    target = Path.expand("../barytherium_cargo", Mix.Project.build_path())
    target = System.get_env("CARGO_TARGET_DIR", target)

    [
      {"MIX_ENV", "dev"},
      {"MIX_BUILD_PATH", build},
      {"CARGO_TARGET_DIR", target},
      {"STOMP_LOGIN", nil},
      {"STOMP_PASSCODE", nil}
    ]
  end

  defp next_line(port) do
    assert_receive {^port, {:data, {:eol, line}}}
    line
  end

  # The next lines, up to the first one with this text.
  defp lines_until(port, text) do
    line = next_line(port)
    if line =~ text, do: [line], else: [line | lines_until(port, text)]
  end

  defp assert_exit(port, status), do: assert_receive({^port, {:exit_status, ^status}})

  # Signals the process group, which are `timeout` and Mix. It may have ended.
  defp kill(signal, pid),
    do: System.cmd("kill", ["-#{signal}", "--", "-#{pid}"], stderr_to_stdout: true)
end

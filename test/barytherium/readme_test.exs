defmodule Barytherium.ReadmeTest do
  @moduledoc "Checks that what the README shows works."
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog

  @moduletag capture_log: true

  alias Barytherium.TestBroker

  @readme File.read!("README.md")

  defp blocks, do: Regex.scan(~r/```elixir\n(.*?)```/s, @readme, capture: :all_but_first)

  defp block(text) do
    [[block]] = Enum.filter(blocks(), fn [block] -> block =~ text end)
    block
  end

  test "the consumer and the client work under a supervisor, and survive a restart of the broker" do
    Code.eval_string(block("defmodule Orders"))
    broker = start_supervised!(TestBroker, id: :first)
    port = TestBroker.port(broker)
    {children, _binding} = "children = " |> block() |> at(port) |> Code.eval_string()

    log =
      capture_log(fn ->
        {:ok, supervisor} = Supervisor.start_link(children, strategy: :one_for_one)
        TestBroker.await_subscription(broker, "/queue/a")
        Code.eval_string(block("Client.publish"))
        TestBroker.await_acknowledgements(broker, "/queue/a")
        stop_supervised!(:first)
        broker = start_supervised!({TestBroker, port: port}, id: :second)
        TestBroker.await_subscription(broker, "/queue/a", 10_000)
        TestBroker.publish(broker, "/queue/a", :zlib.gzip("much longer than before"))
        TestBroker.await_acknowledgements(broker, "/queue/a")
        Supervisor.stop(supervisor)
      end)

    assert log =~ "got 5 bytes"
    assert log =~ "got 23 bytes"
    # Erlang's cache of PEM files ends when it finds that another test has removed one.
    refute log =~ ~r/(?<!:ssl_pem_cache) terminating/
    refute log =~ "guest"
  after
    :code.purge(Orders)
    :code.delete(Orders)
  end

  defp at(block, port), do: String.replace(block, "61613", to_string(port))

  test "the commands for a broker work" do
    # Each is silent while it runs, and these overlap.
    %{level: level} = :logger.get_primary_config()
    on_exit(fn -> :logger.set_primary_config(:level, level) end)
    broker = start_supervised!(TestBroker)
    [tail, send, bench] = commands("localhost", "127.0.0.1:#{TestBroker.port(broker)}")
    tailing = run(Barytherium.Tail, tail ++ ["--count", "1"])
    TestBroker.await_subscription(broker, "/topic/a")
    assert {0, ""} = send |> then(&run(Barytherium.Send, &1)) |> Task.await()
    assert {0, shown} = Task.await(tailing)
    assert shown =~ "hello"
    assert {0, table} = run(Barytherium.Bench, bench ++ ["--seconds", "1"]) |> Task.await()
    assert table =~ ~r/published .*\nconsumed .*\nlatency /
  end

  # Those of the README that begin with `mix barytherium.`, as arguments.
  defp commands(host, broker) do
    for [arguments] <-
          Regex.scan(~r/^mix barytherium\.\w+ ([^#\n]*)/m, @readme, capture: :all_but_first),
        do: arguments |> String.replace("guest@" <> host, broker) |> OptionParser.split()
  end

  defp run(program, arguments) do
    Task.async(fn ->
      {{status, stdout}, _stderr} =
        ExUnit.CaptureIO.with_io(:stderr, fn ->
          ExUnit.CaptureIO.with_io(fn -> program.run(arguments, "command") end)
        end)

      {status, stdout}
    end)
  end

  test "the dependency is one that Mix takes" do
    assert {{:barytherium, path: _path}, _bindings} = "path:" |> block() |> Code.eval_string()
  end
end

defmodule Barytherium.ReadmeTest do
  @moduledoc "Checks that what the README shows works."
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog

  @moduletag capture_log: true

  alias Barytherium.Network.Options
  alias Barytherium.{Frame, TestBroker}

  @readme File.read!("README.md")

  # `UPDATE_GUIDES=1 mix test` updates the table.
  test "the table of options is the one that the schema makes" do
    [before, rest] = String.split(@readme, "<!-- options -->\n")
    [table, rest] = String.split(rest, "<!-- end of options -->")

    if System.get_env("UPDATE_GUIDES") do
      parts = [before, "<!-- options -->\n", Options.table(), "<!-- end of options -->", rest]
      File.write!("README.md", parts)
    else
      assert table == Options.table()
    end
  end

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

    # Tells this process of each message that the consumer gets.
    :erlang.trace(:new_processes, true, [:call])
    :erlang.trace_pattern({Orders, :handle_message, 2}, true)

    log =
      capture_log(fn ->
        {:ok, supervisor} = Supervisor.start_link(children, strategy: :one_for_one)
        TestBroker.await_subscription(broker, "/queue/a")
        Code.eval_string(block("Client.publish"))
        assert_handled()
        stop_supervised!(:first)
        broker = start_supervised!({TestBroker, port: port}, id: :second)
        TestBroker.await_subscription(broker, "/queue/a", 10_000)
        TestBroker.publish(broker, "/queue/a", :zlib.gzip("much longer than before"))
        assert_handled()
        Supervisor.stop(supervisor)
      end)

    assert log =~ "got 5 bytes"
    assert log =~ "got 23 bytes"
    # Erlang's cache of PEM files ends when it finds that another test has removed one.
    refute log =~ ~r/(?<!:ssl_pem_cache) terminating/
    refute log =~ "guest"
  after
    :erlang.trace(:new_processes, false, [:call])
    :code.purge(Orders)
    :code.delete(Orders)
  end

  defp at(block, port), do: String.replace(block, "61613", to_string(port))
  # A message that has not arrived when the broker or the consumer stops is not handled.
  defp assert_handled,
    do: assert_receive({:trace, _consumer, :call, {Orders, :handle_message, _arguments}})

  test "the other examples work" do
    assert {{:barytherium, path: _path}, _bindings} = "path:" |> block() |> Code.eval_string()
    [[parse_error]] = Enum.filter(blocks(), fn [block] -> block =~ "ParseError{rule" end)
    assert {{:error, %Barytherium.ParseError{}}, _bindings} = Code.eval_string(parse_error)
    assert %Frame{command: :ack} = Frame.ack(%Frame{command: :message, headers: [{"ack", "1"}]})
  end
end

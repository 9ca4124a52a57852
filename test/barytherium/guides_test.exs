defmodule Barytherium.GuidesTest do
  @moduledoc "Runs the Elixir code in the guides."
  use ExUnit.Case, async: false

  import Barytherium.ReceiverCase, only: [eventually: 1]
  import ExUnit.CaptureLog

  alias Barytherium.TestBroker

  @moduletag capture_log: true

  setup do
    broker = start_supervised!(TestBroker, id: :broker)
    %{broker: broker, port: TestBroker.port(broker)}
  end

  # The Elixir code of a guide, for a broker at `port`.
  defp blocks(name, port) do
    text = "guides/#{name}.md" |> File.read!() |> String.replace("61613", to_string(port))
    for [block] <- Regex.scan(~r/```elixir\n(.*?)```/s, text, capture: :all_but_first), do: block
  end

  # Runs the blocks one after the other, and `between` before each that contains its key.
  defp run(blocks, between \\ %{}) do
    {binding, _env} =
      Enum.reduce(blocks, {[], env()}, fn block, {binding, env} ->
        for {text, function} <- between, block =~ text, do: function.(binding)

        {_result, binding, env} =
          Code.eval_quoted_with_env(Code.string_to_quoted!(block), binding, env)

        {binding, env}
      end)

    binding
  end

  defp env, do: Code.env_for_eval(file: "guide")

  defp remove(module) do
    :code.purge(module)
    :code.delete(module)
  end

  defp subscribed?(broker), do: :sys.get_state(broker).subscriptions != []

  # A line for `mix.exs` is no code that can run, and has to be Elixir.
  defp dependency?(block), do: block =~ "{:barytherium, path:" or block =~ "hex: :"

  test "those to begin with", %{port: port} do
    stop_supervised!(:broker)
    {dependencies, blocks} = "getting-started" |> blocks(port) |> Enum.split_with(&dependency?/1)
    assert [dependency] = dependencies
    assert {:defp, _meta, _arguments} = Code.string_to_quoted!(dependency)

    log =
      capture_log(fn ->
        {before, [start | later]} = Enum.split_while(blocks, &(not (&1 =~ "children =")))
        binding = run(before)
        # A user ends the first `iex` here, and starts the application in the second.
        GenServer.stop(binding[:broker])
        trace_messages(Feed.Trains)
        {children, _binding} = Code.eval_string(start)
        {:ok, supervisor} = Supervisor.start_link(children, strategy: :one_for_one)
        binding = run(later)
        for _train <- 1..2, do: assert_receive({:trace, _consumer, :call, _message}, 5_000)
        Supervisor.stop(supervisor)
        for process <- [:consumer, :broker], do: GenServer.stop(binding[process])
      end)

    assert log =~ "a train: 1A23 to King's Cross"
    assert log =~ "a train: 2B45 to Ely"
  after
    :erlang.trace(:new_processes, false, [:call])
    remove(Feed.Trains)
  end

  # Tells this process of each message that a consumer, which starts later, handles.
  defp trace_messages(consumer) do
    :erlang.trace(:new_processes, true, [:call])
    :erlang.trace_pattern({consumer, :handle_message, 2}, true)
  end

  test "those about installing and migrating" do
    for name <- ["installation", "migrating"], block <- blocks(name, 0), dependency?(block) do
      assert {{:barytherium, _how}, _bindings} = eval_dependency(block)
    end

    [messages] = "migrating" |> blocks(0) |> Enum.reject(&dependency?/1)
    binding = [sender: self(), frames: [], reason: :closed]
    assert {{:barytherium, :disconnect, :closed}, _binding} = Code.eval_string(messages, binding)
  end

  defp eval_dependency(block) do
    case Code.eval_string(block) do
      {{:barytherium, how}, binding} when is_list(how) -> {{:barytherium, how}, binding}
      {{:barytherium, _version, how}, binding} -> {{:barytherium, how}, binding}
    end
  end

  # Broadway is a package of hex, which the tests do without, so these are not run.
  test "those about Broadway are Elixir" do
    text = File.read!("integrations/off_broadway_barytherium/README.md")
    [dependencies, pipeline] = Regex.scan(~r/```elixir\n(.*?)```/s, text, capture: :all_but_first)
    assert {:defp, _meta, _arguments} = Code.string_to_quoted!(hd(dependencies))
    assert {:defmodule, _meta, _arguments} = Code.string_to_quoted!(hd(pipeline))
  end

  test "each row about brokers names a test that there is" do
    rows = ~r/^\| [^|]+ \| .* \| `([^`]+)`: `([^`]+)` \|$/m
    tests = Regex.scan(rows, File.read!("guides/brokers.md"), capture: :all_but_first)
    assert length(tests) == 24
    for [file, text] <- tests, do: assert(File.read!(file) =~ text, "#{text} is not in #{file}")
  end

  test "those about operations and TLS", %{port: port} do
    {:ok, network} = Barytherium.Network.start_link(self(), "127.0.0.1", port)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    [stats] = blocks("operations", port)
    assert {%{frames: 0, pauses: 0}, _binding} = Code.eval_string(stats, network: network)
    [connect] = blocks("tls", port)
    assert {{:ok, secure}, _binding} = Code.eval_string(connect)
    for pid <- [network, secure], do: GenServer.stop(pid)
  end

  test "those about reliability", %{broker: broker, port: port} do
    invoice = fn binding ->
      TestBroker.await_subscription(broker, "/queue/invoices")
      TestBroker.publish(broker, "/queue/invoices", "no. 1")
      # What has arrived is handled before a consumer stops: CONNECTED, RECEIPT and the message.
      clients = Barytherium.Consumer.clients(binding[:consumer])

      eventually(fn -> Enum.any?(clients, &match?(%{frames: 3}, Barytherium.Client.stats(&1))) end)
    end

    log = capture_log(fn -> run(blocks("reliability", port), %{"Supervisor.stop" => invoice}) end)
    assert log =~ "invoice no. 1"
  after
    remove(Invoices)
  end

  test "those about scaling", %{broker: broker, port: port} do
    binding = run(blocks("scaling", port))
    eventually(fn -> length(:sys.get_state(broker).subscriptions) == 4 end)
    assert apply(Orders, :publish, [binding[:client], "x"]) == :ok
    # The broker is none with queues: all four get it.
    eventually(fn -> Agent.get(binding[:seen], & &1) == ["x", "x", "x", "x"] end)
    Supervisor.stop(binding[:consumer])
  after
    remove(Orders)
  end

  # A handler of :logger. What has been logged has happened.
  defmodule Logged do
    def log(%{msg: {:string, text}}, %{config: test}),
      do: send(test, {:logged, IO.chardata_to_string(text)})

    def log(_report, _config), do: :ok
  end

  defp await_log(text) do
    assert_receive {:logged, logged}, 10_000
    if logged =~ text, do: :ok, else: await_log(text)
  end

  test "the callback process and the consumer that does the same", %{port: port} do
    :ok = :logger.add_handler(__MODULE__, Logged, %{config: self()})
    on_exit(fn -> :logger.remove_handler(__MODULE__) end)
    [before, consumer] = blocks("from-callbacks-to-consumer", port)
    run([before, consumer])
    old = {Consumer, host: "127.0.0.1", port: port}
    new = {Orders, url: "stomp://guest:guest@127.0.0.1:#{port}"}

    for child <- [old, new] do
      log = capture_log(fn -> survives_a_restart(child, port) end)
      assert log =~ "got 6 bytes"
      assert log =~ "closed"
      assert log =~ "econnrefused"
      assert log =~ "got 23 bytes"
      # Erlang's cache of PEM files ends when it finds that another test has removed one.
      refute log =~ ~r/(?<!:ssl_pem_cache) terminating/
      refute log =~ "guest"
    end
  after
    remove(Consumer)
    remove(Orders)
  end

  defp survives_a_restart(child, port) do
    # With the default limit of a supervisor: three restarts in five seconds.
    {:ok, supervisor} = Supervisor.start_link([child], strategy: :one_for_one)
    [{_id, pid, _type, _modules}] = Supervisor.which_children(supervisor)
    publish("before")
    await_log("got 6 bytes")
    stop_supervised!(:broker)
    await_log("econnrefused")
    start_supervised!({TestBroker, port: port}, id: :broker)
    publish(:zlib.gzip("much longer than before"))
    assert [{_id, ^pid, _type, _modules}] = Supervisor.which_children(supervisor)
    await_log("got 23 bytes")
    Supervisor.stop(supervisor)
    # The broker notices that a moment later.
    eventually(fn -> not subscribed?(broker()) end)
  end

  # Waits for the subscription.
  defp publish(body) do
    broker = broker()
    TestBroker.await_subscription(broker, "/queue/a", 10_000)
    TestBroker.publish(broker, "/queue/a", body)
  end

  defp broker do
    {:ok, supervisor} = ExUnit.fetch_test_supervisor()
    [{:broker, broker, _type, _modules}] = Supervisor.which_children(supervisor)
    broker
  end

  test "Darwin", %{broker: broker, port: port} do
    log =
      capture_log(fn ->
        binding = "darwin" |> blocks(port) |> run()
        TestBroker.await_subscription(broker, "/topic/darwin.pushport-v16")
        headers = [{"MessageType", "TS"}]
        TestBroker.publish(broker, "/topic/darwin.pushport-v16", :zlib.gzip("<Pport/>"), headers)
        eventually(fn -> handled?(binding[:supervisor]) end)
        Supervisor.stop(binding[:supervisor])
      end)

    assert log =~ "TS: 8 bytes"
    remove(MyApp.Darwin)
  end

  # Its counters say that the acknowledgement was written.
  defp handled?(supervisor) do
    [{_id, consumer, _type, _modules}] = Supervisor.which_children(supervisor)
    [client] = Barytherium.Consumer.clients(consumer)
    stats = Barytherium.Client.stats(client)
    stats != nil and stats.frames_written >= 3
  end
end

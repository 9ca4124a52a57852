defmodule Barytherium.GuidesTest do
  @moduledoc "Runs the Elixir code in the guides."
  use ExUnit.Case, async: false

  import Barytherium.ReceiverCase, only: [eventually: 1]
  import ExUnit.CaptureLog

  alias Barytherium.{Client, TestBroker}

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

  defp subscribed?(broker), do: :sys.get_state(broker).session.queues.subscriptions != %{}

  # A line for `mix.exs` is no code that can run, and has to be Elixir.
  defp dependency?(block), do: block =~ "{:barytherium, path:" or block =~ "hex: :"

  test "those to begin with", %{port: port} do
    stop_supervised!(:broker)
    {dependencies, blocks} = "getting-started" |> blocks(port) |> Enum.split_with(&dependency?/1)
    assert [dependency] = dependencies
    assert {:defp, _meta, _arguments} = Code.string_to_quoted!(dependency)
    [first_broker, consumer, application, config, broker, publish, test] = blocks

    log =
      capture_log(fn ->
        # A user ends the first `iex` here, and starts the application in the second.
        GenServer.stop(run([first_broker, consumer, application])[:broker])
        assert Config.Reader.eval!("config.exs", config, env: :test) == []
        [feed: [broker: url]] = Config.Reader.eval!("config.exs", config, env: :dev)
        Application.put_env(:feed, :broker, url)
        {:ok, supervisor} = apply(Feed.Application, :start, [:normal, []])
        binding = run([broker, publish])
        :ok = TestBroker.await_acknowledgements(binding[:broker], "/queue/trains")
        Supervisor.stop(supervisor)
        GenServer.stop(binding[:broker])
      end)

    assert log =~ "a train: 1A23 to King's Cross"

    # ExUnit takes no further module now, so its test is run as a function.
    as_function =
      test
      |> String.replace("use ExUnit.Case, async: true", "import ExUnit.{Assertions, Callbacks}")
      |> String.replace(~s(test "a train is logged" do), "def run do")

    run([as_function, "Feed.TrainsTest.run()"])
  after
    Application.delete_env(:feed, :broker)
    for module <- [Feed.Trains, Feed.Application, Feed.TrainsTest], do: remove(module)
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

  # What needs packages of hex is left out.
  test "the notebook" do
    text = File.read!("integrations/livebook/feed.livemd")

    blocks =
      for [block] <- Regex.scan(~r/```elixir\n(.*?)```/s, text, capture: :all_but_first),
          do: block

    blocks = Enum.reject(blocks, &(&1 =~ "Mix.install" or &1 =~ "Kino"))
    assert [_broker, _consumer, look, _end] = blocks
    {shown, binding} = run_until(blocks, look)
    assert {[%{destination: "/topic/trains", messages: messages}], :ok, body} = shown
    assert messages > 0
    assert body == "<Pport>a train</Pport>"

    eventually(fn -> {:error, [:not_connected]} == Barytherium.Client.health(binding[:client]) end)

    Supervisor.stop(binding[:consumer])
    remove(Latest)
  end

  # What `look` returns when messages have come, and the binding after all blocks.
  defp run_until(blocks, look) do
    binding = run(blocks, %{"GenServer.stop" => &await_messages/1})
    {Process.get(:shown) || look, binding}
  end

  defp await_messages(binding) do
    shown = fn ->
      {Barytherium.Client.feeds(binding[:client]), Barytherium.Client.health(binding[:client]),
       Agent.get(binding[:agent], & &1)}
    end

    eventually(fn -> match?({_feeds, _health, body} when body != nil, shown.()) end)
    Process.put(:shown, shown.())
  end

  test "each row about brokers names a test that there is" do
    rows = ~r/^\| [^|]+ \| .* \| `([^`]+)`: `([^`]+)` \|$/m
    tests = Regex.scan(rows, File.read!("guides/brokers.md"), capture: :all_but_first)
    assert length(tests) == 29
    for [file, text] <- tests, do: assert(File.read!(file) =~ text, "#{text} is not in #{file}")
  end

  test "those about operations and TLS", %{broker: broker, port: port} do
    {:ok, network} = Barytherium.Network.start_link(self(), "127.0.0.1", port)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    [stats, trace, feed, endpoint] = blocks("operations", port)
    # For a shell.
    assert {:__block__, _meta, [_on, _flush, _off]} = Code.string_to_quoted!(trace)
    assert {%{frames: 0, pauses: 0}, _binding} = Code.eval_string(stats, network: network)
    binding = run([feed])
    TestBroker.await_subscription(broker, "/topic/prices")
    eventually(fn -> match?({200, _binding}, Code.eval_string(endpoint, binding)) end)
    Supervisor.stop(binding[:prices])
    remove(MyApp.Prices)
    [consumer, connect] = blocks("tls", port)
    [children: [{module, opts}]] = run([consumer])

    # Without the files it has no connection, and tries again.
    {:ok, consumer} = module.start_link(opts)
    Supervisor.stop(consumer)
    assert {{:ok, secure}, _binding} = Code.eval_string(connect)
    for pid <- [network, secure], do: GenServer.stop(pid)
    remove(module)
  end

  test "those about options and connections", %{broker: broker, port: port} do
    [consumer, clients] = blocks("options", port)
    [children: [child]] = run([consumer])
    start_supervised!(child)
    TestBroker.await_subscription(broker, "/queue/orders")
    [children: [{Barytherium.Client, opts}]] = run([clients])
    start_supervised!({Barytherium.Client, opts})

    {[connect], [parse_error]} =
      "network" |> blocks(port) |> Enum.split_with(&(&1 =~ "start_link"))

    assert [network: network] = run([connect])
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    assert {{:error, %Barytherium.ParseError{}}, _bindings} = Code.eval_string(parse_error)
    GenServer.stop(network)
  after
    remove(MyApp.Orders)
  end

  test "those about reliability", %{broker: broker, port: port} do
    handled = fn binding ->
      for {destination, headers} <- [
            {"/queue/invoices", []},
            {"/queue/movements", [{"train", "1A23"}]}
          ] do
        TestBroker.await_subscription(broker, destination)
        TestBroker.publish(broker, destination, :zlib.gzip("no. 1"), headers)
        TestBroker.await_acknowledgements(broker, destination)
      end

      Supervisor.stop(binding[:movements])
    end

    printed =
      ExUnit.CaptureIO.capture_io(fn ->
        log =
          capture_log(fn -> run(blocks("reliability", port), %{"Supervisor.stop" => handled}) end)

        assert log =~ "invoice "
      end)

    assert printed == "1A23: no. 1\n"
  after
    for module <- [Invoices, Movements], do: remove(module)
  end

  test "patterns", %{broker: broker, port: port} do
    # The test broker has no durable subscriptions.
    {durable, blocks} = "patterns" |> blocks(port) |> Enum.split_with(&(&1 =~ "durable:"))
    assert length(durable) == 1
    binding = run(blocks)
    assert binding[:reply].body == "1A23: 12.50"
    TestBroker.assert_published(broker, "/queue/invoices.failed", "not a number")
    TestBroker.assert_acked(broker, "/queue/deliveries", "150")
    TestBroker.assert_published(broker, "/queue/positions", "1A23 at milepost 1000")
    Client.close(binding[:publisher])
    for consumer <- [:prices, :invoices, :deliveries], do: Supervisor.stop(binding[consumer])
    GenServer.stop(binding[:client])
  after
    for module <- [Prices, Invoices, Deliveries], do: remove(module)
  end

  test "those about scaling", %{broker: broker, port: port} do
    binding = run(blocks("scaling", port))
    eventually(fn -> map_size(:sys.get_state(broker).session.queues.subscriptions) == 4 end)
    assert apply(Orders, :publish, [binding[:client], "x"]) == :ok
    TestBroker.assert_acked(broker, "/queue/orders", "x")
    assert Agent.get(binding[:seen], & &1) == ["x"]
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

  test "a rail feed", %{broker: broker, port: port} do
    [consumer, children, test, measure] = blocks("darwin", port)
    test = String.replace(test, "feed.rec", "examples/darwin_feed/feed.rec")

    printed =
      ExUnit.CaptureIO.capture_io(fn ->
        log =
          capture_log(fn ->
            binding = run([consumer, children])
            destination = "/topic/darwin.pushport-v16"
            TestBroker.await_subscription(broker, destination)
            headers = [{"MessageType", "TS"}]
            TestBroker.publish(broker, destination, :zlib.gzip("<Pport/>"), headers)
            TestBroker.assert_acked(broker, destination, :zlib.gzip("<Pport/>"))
            # The durable subscription is somebody else's on the second broker.
            Supervisor.stop(binding[:supervisor])

            binding = run([test, "[client] = Barytherium.Consumer.clients(consumer)"])
            eventually(fn -> hd(Barytherium.Client.feeds(binding[:client])).messages == 100 end)
            assert {:ok, _binding} = Code.eval_string(measure, binding)
            Supervisor.stop(binding[:consumer])
          end)

        assert log =~ "TS: 8 bytes"
        assert length(Regex.scan(~r/TS: \d{4} bytes/, log)) > 50
      end)

    assert printed =~ ~r/^100 messages, 2 missing, 99 % at their callback within \d+ us$/
  after
    remove(MyApp.Darwin)
  end
end

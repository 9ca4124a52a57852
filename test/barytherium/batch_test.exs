defmodule Barytherium.BatchTest do
  @moduledoc "`batch_size` and `batch_timeout` of consumers."
  use Barytherium.ClientCase, async: true

  alias Barytherium.TestBroker

  # Long enough not to end while a test runs.
  @never 60_000

  defmodule Batches do
    use Barytherium.Consumer

    @impl true
    def handle_batch(frames, test) do
      send(test, {:batch, Enum.map(frames, & &1.body)})
      {:ack, test}
    end
  end

  defp start(opts) do
    broker = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
    own = [url: url, subscribe: "/queue/a", init_arg: self(), backoff: {1, 10}]
    child = {Batches, Keyword.merge(own, opts)}
    consumer = start_supervised!(child, restart: :temporary)
    TestBroker.await_subscription(broker, "/queue/a")
    {broker, consumer}
  end

  defp publish(broker, bodies, headers \\ []),
    do: for(n <- bodies, do: TestBroker.publish(broker, "/queue/a", "#{n}", headers))

  defp bodies(numbers), do: Enum.map(numbers, &"#{&1}")

  test "a batch has its size, however the messages arrive" do
    {broker, _consumer} = start(batch_size: 3, batch_timeout: @never)
    publish(broker, 1..10)

    for first <- [1, 4, 7],
        do: assert_receive({:batch, batch}) && assert(batch == bodies(first..(first + 2)))

    refute_receive {:batch, _early}, 50
    publish(broker, 11..12)
    assert_receive {:batch, ["10", "11", "12"]}
    :ok = TestBroker.await_acknowledgements(broker, "/queue/a")
  end

  test "or what has come in time" do
    {broker, _consumer} = start(batch_size: 100, batch_timeout: 50)
    publish(broker, [1])
    assert_receive {:batch, ["1"]}
    publish(broker, [2])
    assert_receive {:batch, ["2"]}
    :ok = TestBroker.await_acknowledgements(broker, "/queue/a")
  end

  test "without a time each list is a batch of its own, and 1 is a size" do
    {broker, _consumer} = start(batch_size: 1, batch_timeout: 0)
    publish(broker, 1..3)
    for n <- 1..3, do: assert_receive({:batch, [body]}) && assert(body == "#{n}")
  end

  test "a consumer that stops handles what it has collected" do
    {broker, consumer} = start(batch_size: 3, batch_timeout: @never)
    publish(broker, 1..4)
    assert_receive {:batch, ["1", "2", "3"]}
    TestBroker.assert_acked(broker, "/queue/a", "3")
    Supervisor.stop(consumer)
    assert_receive {:batch, ["4"]}
    TestBroker.assert_acked(broker, "/queue/a", "4")
  end

  test "what is left of a connection that has ended is in no batch" do
    {broker, _consumer} = start(batch_size: 3, batch_timeout: @never)
    publish(broker, 1..2)
    # They are in the consumer.
    refute_receive {:batch, _early}, 50
    TestBroker.fault(broker, :close)
    TestBroker.await_subscription(broker, "/queue/a", 5_000)
    publish(broker, [3])
    # The broker delivers them again.
    assert_receive {:batch, batch}
    assert Enum.sort(batch) == ["1", "2", "3"]
    refute_receive {:batch, _more}, 50
  end

  test "several handlers collect batches of their own" do
    {broker, _consumer} = start(batch_size: 2, batch_timeout: 100, handlers: 3)
    publish(broker, 1..20)
    batches = collect(20)
    assert Enum.all?(batches, &(length(&1) <= 2))
    assert Enum.sort(List.flatten(batches)) == Enum.sort(bodies(1..20))
    :ok = TestBroker.await_acknowledgements(broker, "/queue/a")
  end

  test "by key a batch is of one handler, in order" do
    subscribe = {"/queue/a", ack: :client}

    opts = [
      batch_size: 4,
      batch_timeout: 50,
      handlers: 2,
      key: {:header, "k"},
      subscribe: subscribe
    ]

    {broker, _consumer} = start(opts)
    for n <- 1..12, do: publish(broker, [n], [{"k", "#{rem(n, 3)}"}])
    batches = collect(12)

    for key <- 0..2 do
      numbers =
        for batch <- batches, n <- batch, n = String.to_integer(n), rem(n, 3) == key, do: n

      assert numbers == Enum.sort(numbers)
    end

    :ok = TestBroker.await_acknowledgements(broker, "/queue/a")
  end

  defp collect(0), do: []

  defp collect(left) do
    assert_receive {:batch, batch}
    [batch | collect(left - length(batch))]
  end

  test "a batch that can never be full is a mistake, and so is one without a callback for it" do
    defmodule Single do
      use Barytherium.Consumer

      @impl true
      def handle_message(_frame, state), do: {:ack, state}
    end

    own = [url: "stomp://h", subscribe: {"/queue/a", prefetch: 10}]

    for {module, opts, text} <- [
          {Batches, [batch_size: 11], ~r/sends 10 messages of \/queue\/a ahead/},
          {Batches, [batch_size: 5, handlers: 3], ~r/has to send 13/},
          {Batches, [batch_size: 0], ~r/:batch_size/},
          {Single, [batch_size: 2], ~r/has no handle_batch/}
        ] do
      assert_raise ArgumentError, text, fn -> module.start_link(own ++ opts) end
    end
  end
end

defmodule OffBroadway.Barytherium.ProducerTest do
  use ExUnit.Case, async: true

  alias Barytherium.Frame
  alias OffBroadway.Barytherium.Producer

  defmodule Pipeline do
    use Broadway

    def start(test, producer, opts \\ []) do
      Broadway.start_link(__MODULE__,
        name: opts[:name] || :"pipeline#{System.unique_integer([:positive])}",
        context: test,
        producer: [module: {Producer, producer}, concurrency: 1],
        processors: [default: [concurrency: 2, max_demand: 2]]
      )
    end

    @impl true
    def handle_message(_processor, message, test) do
      send(test, {:handling, message.data, message.metadata, self()})

      case message.data do
        "fail" ->
          Broadway.Message.failed(message, "no")

        "configure" ->
          Broadway.Message.configure_ack(message, on_success: {:nack, [{"requeue", "false"}]})

        "wait" ->
          receive(do: (:go -> message))

        _other ->
          message
      end
    end
  end

  # A scripted broker with one connection at a time. It tells the test of every frame.
  defp broker do
    test = self()
    {:ok, listener} = :gen_tcp.listen(0, [:binary, active: false, ip: {127, 0, 0, 1}])
    {:ok, port} = :inet.port(listener)
    broker = spawn_link(fn -> accept(listener, test) end)
    :ok = :gen_tcp.controlling_process(listener, broker)
    "stomp://127.0.0.1:#{port}"
  end

  defp accept(listener, test) do
    {:ok, socket} = :gen_tcp.accept(listener)
    :inet.setopts(socket, active: true)
    serve(socket, test, Frame.parse_state())
    accept(listener, test)
  end

  defp serve(socket, test, state) do
    receive do
      {:tcp, ^socket, data} ->
        {:ok, frames, state} = Frame.parse_all(data, state)
        Enum.each(frames, &answer(&1, socket, test))
        serve(socket, test, state)

      {:message, id, body} ->
        headers = [{"subscription", id}, {"message-id", body}, {"ack", body}, {"x", "y"}]
        write(socket, :message, headers, body)
        serve(socket, test, state)

      :close ->
        :gen_tcp.close(socket)

      {:tcp_closed, ^socket} ->
        :ok
    end
  end

  defp answer(%Frame{command: command, headers: headers}, socket, test) do
    headers = Frame.headers_to_map(headers)
    send(test, {command, headers, self()})
    if command == :connect, do: write(socket, :connected, [{"version", "1.2"}], "")
    if headers["receipt"], do: write(socket, :receipt, [{"receipt-id", headers["receipt"]}], "")
    if command == :disconnect, do: send(self(), :close)
  end

  defp write(socket, command, headers, body) do
    frame = %Frame{command: command, headers: headers, body: body}
    :ok = :gen_tcp.send(socket, Frame.format(frame))
  end

  defp start(opts \\ []) do
    url = broker()
    producer = [url: url, destination: "/queue/a", backoff: {20, 50}] ++ opts
    {:ok, pipeline} = Pipeline.start(self(), producer)
    assert_receive {:subscribe, headers, broker}
    {pipeline, broker, headers}
  end

  test "messages go through the pipeline, and are acknowledged or refused" do
    {_pipeline, broker, %{"id" => id}} = start(metadata: ["x"])
    for body <- ["1", "fail", "configure"], do: send(broker, {:message, id, body})
    assert_receive {:handling, "1", %{headers: headers}, _pid}
    assert headers == [{"x", "y"}]
    assert_receive {:ack, %{"id" => "1"}, _broker}
    assert_receive {:nack, %{"id" => "fail"} = headers, _broker}
    refute Map.has_key?(headers, "requeue")
    assert_receive {:nack, %{"id" => "configure", "requeue" => "false"}, _broker}
  end

  test "the broker is asked for no more than prefetch" do
    {_pipeline, _broker, headers} = start(prefetch: 7)
    assert %{"prefetch-count" => "7", "ack" => "client-individual"} = headers
  end

  test "no more messages are in the pipeline than it demands" do
    {_pipeline, broker, %{"id" => id}} = start()
    for _n <- 1..20, do: send(broker, {:message, id, "wait"})
    assert_receive {:handling, "wait", _metadata, first}
    assert_receive {:handling, "wait", _metadata, second}
    refute_receive {:handling, _body, _metadata, _pid}, 100
    for pid <- [first, second], do: send(pid, :go)

    for _n <- 1..18 do
      assert_receive {:handling, "wait", _metadata, pid}
      send(pid, :go)
    end

    for _n <- 1..20, do: assert_receive({:ack, %{"id" => "wait"}, _broker})
  end

  test "a message of an earlier connection is not acknowledged, and later ones are" do
    {_pipeline, broker, %{"id" => id}} = start()
    send(broker, {:message, id, "wait"})
    assert_receive {:handling, "wait", _metadata, pid}
    send(broker, :close)
    assert_receive {:subscribe, %{"id" => other}, broker}
    send(broker, {:message, other, "2"})
    assert_receive {:ack, %{"id" => "2"}, _broker}
    send(pid, :go)
    send(broker, {:message, other, "3"})
    assert_receive {:ack, %{"id" => "3"}, _broker}
    refute_received {:ack, %{"id" => "wait"}, _broker}
  end

  test "stopping handles and acknowledges what is in the pipeline, and disconnects" do
    {pipeline, broker, %{"id" => id}} = start()
    send(broker, {:message, id, "wait"})
    assert_receive {:handling, "wait", _metadata, pid}
    stopping = Task.async(fn -> Broadway.stop(pipeline) end)
    Process.sleep(50)
    send(pid, :go)
    assert_receive {:ack, %{"id" => "wait"}, _broker}
    assert_receive {:disconnect, _headers, _broker}
    assert Task.await(stopping) == :ok
  end

  test "without acknowledgements there are none" do
    {_pipeline, broker, %{"id" => id}} = start(ack: :auto)
    for body <- ["1", "fail"], do: send(broker, {:message, id, body})
    assert_receive {:handling, "1", _metadata, _pid}
    assert_receive {:handling, "fail", _metadata, _pid}
    refute_receive {:ack, _headers, _broker}, 100
    refute_received {:nack, _headers, _broker}
  end

  test "mistakes in the options raise" do
    Process.flag(:trap_exit, true)
    own = [url: "stomp://h", destination: "/a"]

    for opts <- [
          [url: "stomp://h"],
          own ++ [ack: :client],
          own ++ [on_success: :okay],
          own ++ [nope: 1]
        ] do
      assert {:error, _reason} = Pipeline.start(self(), opts)
    end
  end
end

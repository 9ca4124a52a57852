defmodule OffBroadway.Barytherium.Producer do
  @moduledoc """
  A [Broadway](https://hexdocs.pm/broadway) producer for the messages of a STOMP destination.

      Broadway.start_link(MyBroadway,
        name: MyBroadway,
        producer: [
          module:
            {OffBroadway.Barytherium.Producer,
             url: "stomp://guest:guest@localhost", destination: "/queue/orders", prefetch: 50},
          concurrency: 2
        ],
        processors: [default: [concurrency: 10]]
      )

  Each producer has a `Barytherium.Client` of its own, which stays connected.

  ## Options

    * `:destination` - what to subscribe to. Required;
    * `:ack` - `:client_individual` (the default) or `:auto`. With `:auto` the broker forgets a message when
      it has sent it: nothing limits how many wait in the producer, and they are lost when Broadway stops;
    * `:prefetch` - how many messages the broker may send to a producer before one of them is
      acknowledged. This is also the limit of what waits in the producer for demand. Default: 50;
    * `:durable`, `:subscription_headers` - the options `:durable` and `:headers` of
      `Barytherium.Client.subscribe/3`;
    * `:on_success` - what to do with messages that were handled: `:ack` (the default), `:nack`,
      `{:nack, headers}`, or `:noop`;
    * `:on_failure` - the same for messages that failed. Default: `:nack`;
    * `:metadata` - names of headers that `Broadway.Message` has in its metadata, as `%{headers: [{name, value}]}`, where
      OpenTelemetry's adapter for Broadway finds the trace of the publisher. Default: `:all`.

  The other options are those of `Barytherium.Client.start_link/1`: `:url`, `:passcode` and so on.

  ## Acknowledging

  `Broadway.Message.configure_ack/2` takes `:on_success` and `:on_failure`. A message of an earlier connection
  cannot be acknowledged any more. The broker delivers it again, so its acknowledgement is dropped.

  ## Stopping

  While Broadway drains, no further messages are taken. Those that are in the pipeline are handled and
  acknowledged. The rest the broker delivers again, unless `:ack` is `:auto`.
  """
  use GenStage

  alias Barytherium.{Client, Frame}
  alias OffBroadway.Barytherium.Acknowledger

  @behaviour Broadway.Producer

  @prefetch 50

  # Milliseconds that the orderly end of a connection may take.
  @close_timeout 5_000

  @own [:destination, :ack, :prefetch, :durable, :subscription_headers, :metadata, :broadway] ++
         Acknowledger.options()

  @impl true
  def init(opts) do
    # With this, `terminate/2` runs when Broadway stops.
    Process.flag(:trap_exit, true)
    {own, client_opts} = Keyword.split(opts, @own)

    destination =
      own[:destination] ||
        raise(ArgumentError, "option :destination is missing: what to subscribe to")

    ack = Keyword.get(own, :ack, :client_individual)

    unless ack in [:client_individual, :auto] do
      raise ArgumentError,
            "option :ack is :client_individual or :auto, because messages are handled in any order"
    end

    ack_data = Acknowledger.configure!(%{}, Keyword.take(own, Acknowledger.options()))
    {:ok, client} = Client.start_link([listener: self()] ++ client_opts)
    {:ok, _subscription} = Client.subscribe(client, destination, subscription(own, ack))

    {:producer,
     %{
       client: client,
       acknowledger: if(ack == :auto, do: nil, else: ack_data),
       metadata: Keyword.get(own, :metadata, :all),
       queue: :queue.new(),
       demand: 0,
       draining: false
     }}
  end

  # There is no connection yet, so this does not wait for the broker.
  defp subscription(own, ack) do
    [
      ack: ack,
      prefetch: Keyword.get(own, :prefetch, @prefetch),
      headers: Keyword.get(own, :subscription_headers, [])
    ] ++ Keyword.take(own, [:durable])
  end

  @impl true
  def handle_demand(demand, state), do: dispatch(%{state | demand: state.demand + demand})

  @impl true
  def handle_info({:barytherium, :messages, {_frames, _subscription}}, %{draining: true} = state),
    do: {:noreply, [], state}

  def handle_info({:barytherium, :messages, {frames, _subscription}}, state),
    do: dispatch(%{state | queue: Enum.reduce(frames, state.queue, &:queue.in/2)})

  # The broker delivers what was not acknowledged again.
  def handle_info(
        {:barytherium, :client, {{:disconnected, _error}, _client}},
        %{acknowledger: ack_data} = state
      )
      when ack_data != nil,
      do: {:noreply, [], %{state | queue: :queue.new()}}

  def handle_info({:EXIT, client, reason}, %{client: client} = state), do: {:stop, reason, state}
  def handle_info(_stray, state), do: {:noreply, [], state}

  @impl Broadway.Producer
  def prepare_for_draining(state),
    do: {:noreply, [], %{state | draining: true, queue: :queue.new()}}

  @impl true
  def terminate(_reason, %{client: client}) do
    Client.close(client, @close_timeout)
  catch
    # The client has ended before.
    :exit, _reason -> :ok
  end

  defp dispatch(state) do
    count = min(state.demand, :queue.len(state.queue))
    {frames, queue} = :queue.split(count, state.queue)
    messages = for frame <- :queue.to_list(frames), do: message(frame, state)
    {:noreply, messages, %{state | queue: queue, demand: state.demand - count}}
  end

  defp message(%Frame{} = frame, state) do
    %Broadway.Message{
      data: frame.body,
      metadata: %{headers: headers(frame, state.metadata)},
      acknowledger: acknowledger(frame, state)
    }
  end

  defp headers(frame, :all), do: frame.headers

  defp headers(frame, names),
    do: Enum.filter(frame.headers, fn {name, _value} -> name in names end)

  defp acknowledger(_frame, %{acknowledger: nil}), do: Broadway.NoopAcknowledger.init()

  defp acknowledger(frame, %{client: client, acknowledger: ack_data}) do
    # The body is not needed to acknowledge.
    {Acknowledger, client, Map.put(ack_data, :frame, %{frame | body: ""})}
  end
end

defmodule Barytherium.Client.Dispatcher do
  @moduledoc false
  # The delivery process of a client without a consumer (see `Barytherium.Client.Delivery`). It sends
  # messages on to the subscribers. What a subscriber that is behind cannot take is held here. When too
  # much is held, this process stops taking lists of frames. Its mailbox then grows, and that stops the
  # reading from the broker.
  use GenServer, restart: :temporary

  alias Barytherium.Client.{Delivery, Held}
  alias Barytherium.Frame

  # Milliseconds between two looks at the mailboxes of subscribers that are behind.
  @poll 5

  @spec start_link(pid()) :: GenServer.on_start()
  def start_link(client), do: GenServer.start_link(__MODULE__, client)

  @impl true
  def init(client) do
    # A link does not end this process when the client ends with reason `:normal`.
    Process.monitor(client)

    {:ok,
     %{
       client: client,
       # `{pid, mode, :open | :ending}` of each subscription of the connection.
       subscribers: %{},
       held: %Held{},
       polling: false,
       # Whether the client closes. Then nobody is waited for.
       closing: false
     }}
  end

  @impl true
  def handle_cast({:barytherium, :connect, result}, state) do
    Delivery.connect(state.client, result)
    {:noreply, state}
  end

  def handle_cast({:barytherium, :frames, {[%Frame{command: :connected} = frame], sender}}, state) do
    Delivery.connected(state.client, sender, frame)
    # Their ids are new for each connection.
    {:noreply, %{state | subscribers: %{}}}
  end

  # Receipts go before any waiting: somebody may wait for one who is not the subscriber that is behind.
  # They come after the messages, so that all that was sent before UNSUBSCRIBE's is delivered.
  def handle_cast({:barytherium, :frames, {frames, sender}}, state) do
    {messages, control} = Enum.split_with(frames, &(&1.command == :message))

    state =
      messages
      |> Enum.group_by(&subscription/1)
      |> Enum.reduce(state, fn {id, messages}, state -> dispatch(id, messages, state) end)

    Delivery.control(state.client, sender, control)
    {:noreply, state |> await_room(sender) |> poll()}
  end

  # The broker delivers again what is held, unless it does not wait for acknowledgements.
  def handle_cast({:barytherium, :disconnect, reason}, state) do
    Delivery.disconnect(state.client, reason)
    {:noreply, %{state | held: Held.keep(state.held, &match?({:auto, _id}, &1))}}
  end

  def handle_cast({:client, event}, state), do: {:noreply, event(event, state)}
  def handle_cast(_stray, state), do: {:noreply, state}

  @impl true
  def handle_info(:poll, state), do: {:noreply, poll(release_some(%{state | polling: false}))}

  def handle_info({:DOWN, _monitor, :process, client, _reason}, %{client: client} = state) do
    state.held |> Held.release_all() |> release(state)
    {:stop, :shutdown, state}
  end

  def handle_info(_stray, state), do: {:noreply, state}

  @doc false
  # Messages may hold bodies.
  # A callback of GenServer since Elixir 1.17. OTP has called it before.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  def format_status(status) do
    status
    |> Map.replace(:message, "...")
    |> Map.replace(:log, [])
    |> Map.replace_lazy(:state, &Map.delete(&1, :held))
  end

  # STOMP 1.1, "MESSAGE": the header is required.
  defp subscription(%Frame{headers: headers}) do
    {_name, id} = List.keyfind(headers, "subscription", 0, {nil, nil})
    id
  end

  defp dispatch(id, messages, state) do
    case look_up(id, state) do
      {{subscriber, mode, phase}, state} ->
        now? = state.closing or (mode == :auto and phase == :ending)
        deliver(subscriber, {mode, id}, messages, now?, state)

      {nil, state} ->
        state
    end
  end

  # Ids of ended subscriptions are not kept, because there may be many in the course of a connection.
  defp look_up(id, %{subscribers: subscribers} = state) when is_map_key(subscribers, id),
    do: {subscribers[id], state}

  defp look_up(id, state) do
    case id && Delivery.subscriber(state.client, id) do
      nil -> {nil, state}
      {pid, mode} -> {{pid, mode, :open}, put_in(state.subscribers[id], {pid, mode, :open})}
    end
  end

  defp deliver(subscriber, key, messages, now?, state) do
    if now? or (not Held.any?(state.held, subscriber) and not Held.behind?(subscriber)) do
      send_on(subscriber, messages, state)
    else
      %{state | held: Held.add(state.held, subscriber, key, messages)}
    end
  end

  defp send_on(subscriber, messages, state) do
    GenServer.cast(subscriber, {:barytherium, :frames, {messages, state.client}})
    state
  end

  defp release_some(state),
    do: state.held |> Held.release(System.monotonic_time(:millisecond)) |> release(state)

  # Sends on what was taken out of `held`.
  defp release({lists, held}, state) do
    Enum.reduce(lists, %{state | held: held}, fn {pid, messages}, state ->
      send_on(pid, messages, state)
    end)
  end

  defp poll(%{polling: false} = state) do
    if Held.none?(state.held) do
      state
    else
      Process.send_after(self(), :poll, @poll)
      %{state | polling: true}
    end
  end

  defp poll(state), do: state

  # After the end of the connection nothing more comes, and the client waits for this process.
  defp await_room(state, sender) do
    if Held.full?(state.held) and Process.alive?(sender) do
      receive do
        {:"$gen_cast", {:client, event}} -> await_room(event(event, state), sender)
      after
        @poll -> await_room(release_some(state), sender)
      end
    else
      state
    end
  end

  # A subscriber may be the one that waits for the client to close or to unsubscribe, so it is not waited
  # for.
  defp event(:closing, state),
    do: state.held |> Held.release_all() |> release(%{state | closing: true})

  # After UNSUBSCRIBE messages cannot be acknowledged any more, and the broker will deliver them again.
  # Those that need no acknowledgement go to the subscriber until the broker has answered.
  defp event({:unsubscribing, id, :auto}, state) do
    state = state.held |> Held.take({:auto, id}) |> release(state)
    {_entry, state} = look_up(id, state)
    update_in(state.subscribers, &end_subscription(&1, id))
  end

  defp event({:unsubscribing, id, mode}, state) do
    {_dropped, held} = Held.take(state.held, {mode, id})
    %{state | held: held, subscribers: Map.put(state.subscribers, id, nil)}
  end

  defp event({:unsubscribed, id, _mode}, state),
    do: update_in(state.subscribers, &Map.delete(&1, id))

  # Other events are for consumers.
  defp event(_other, state), do: state

  defp end_subscription(subscribers, id) do
    case subscribers do
      %{^id => {pid, mode, :open}} -> %{subscribers | id => {pid, mode, :ending}}
      _not_there -> subscribers
    end
  end
end

defmodule Barytherium.TestBroker.Queues do
  @moduledoc false
  # The queues and topics of a broker, as a value: what waits, who is subscribed, and what is not acknowledged.
  #
  # A subscription takes from a queue. Those to the same queue compete: each message goes to the next one that has
  # room. A subscription to a topic has a queue of its own, which gets a copy of each message and ends with it.
  #
  # The messages that are to be sent collect in `deliveries`, the latest first. `take/1` empties it.

  @type connection :: pid()
  @type subscription :: {connection(), id :: binary()}
  @type queue :: binary() | subscription()
  @type message :: %{
          place: {0 | 1, pos_integer()},
          queue: queue(),
          destination: binary(),
          headers: Barytherium.Frame.frame_headers(),
          body: binary(),
          redelivered: boolean()
        }
  @type options :: %{
          ack: binary(),
          prefetch: pos_integer() | :infinity,
          dead_letters: binary() | nil
        }
  @type delivery :: %{
          number: pos_integer(),
          subscription: subscription(),
          message: message(),
          ack: binary(),
          dead_letters: binary() | nil
        }

  # `like`: the broker that is imitated. `waiting`: the messages of each queue by their places. `order`: the
  # subscriptions of each queue; the next one to get a message is the first. `subscriptions`: their destination, queue,
  # options, how many messages they have not acknowledged, and whether a message passed by because of that.
  # `unacknowledged`: the deliveries of each connection by their numbers. `open`: how many
  # messages of a destination are not handled. `settled`: the destinations of which one was acknowledged or refused.
  defstruct like: nil,
            waiting: %{},
            order: %{},
            subscriptions: %{},
            unacknowledged: %{},
            next: 1,
            open: %{},
            settled: MapSet.new(),
            deliveries: []

  @type t :: %__MODULE__{}

  @spec take(t()) :: {[delivery()], t()}
  def take(state), do: {Enum.reverse(state.deliveries), %{state | deliveries: []}}

  @spec subscribe(t(), subscription(), binary(), options()) :: t()
  def subscribe(state, key, destination, options) do
    queue = if topic?(destination), do: key, else: destination

    subscription =
      Map.merge(options, %{destination: destination, queue: queue, held: 0, passed: false})

    state = put_in(state.subscriptions[key], subscription)
    order = Map.update(state.order, queue, [key], &(&1 ++ [key]))
    dispatch(%{state | order: order}, queue)
  end

  @spec subscribed?(t(), binary()) :: boolean()
  def subscribed?(state, destination),
    do: Enum.any?(state.subscriptions, fn {_key, one} -> one.destination == destination end)

  @doc "Ends a subscription. What it has not acknowledged waits again."
  @spec unsubscribe(t(), subscription()) :: t()
  def unsubscribe(state, {connection, _id} = key) do
    state = retire(state, key)

    held =
      for delivery <- unacknowledged(state, connection),
          delivery.subscription == key,
          do: delivery

    give_back(state, held)
  end

  @doc "Ends a subscription, but leaves what it has not acknowledged with the connection, as RabbitMQ does."
  @spec retire(t(), subscription()) :: t()
  def retire(state, key) do
    {%{queue: queue, destination: destination}, state} = pop_in(state.subscriptions[key])

    case List.delete(state.order[queue], key) do
      _none when queue == key -> drop(state, queue, destination)
      [] -> %{state | order: Map.delete(state.order, queue)}
      others -> put_in(state.order[queue], others)
    end
  end

  @doc "Ends all subscriptions of a connection. What it has not acknowledged waits again."
  @spec closed(t(), connection()) :: t()
  def closed(state, connection) do
    keys = for {{^connection, _id} = key, _subscription} <- state.subscriptions, do: key
    state = Enum.reduce(keys, state, &retire(&2, &1))
    state = give_back(state, unacknowledged(state, connection))
    %{state | unacknowledged: Map.delete(state.unacknowledged, connection)}
  end

  @spec publish(t(), binary(), Barytherium.Frame.frame_headers(), binary()) :: t()
  def publish(state, destination, headers, body) do
    queues =
      if topic?(destination),
        do: for({key, %{destination: ^destination}} <- state.subscriptions, do: key),
        else: [destination]

    message = %{destination: destination, headers: headers, body: body, redelivered: false}

    Enum.reduce(queues, state, fn queue, state ->
      message = Map.merge(message, %{place: {1, state.next}, queue: queue})
      open = Map.update(state.open, destination, 1, &(&1 + 1))
      %{state | next: state.next + 1, open: open} |> wait(message) |> dispatch(queue)
    end)
  end

  @doc "The deliveries that `connection` has not acknowledged, the oldest first."
  @spec unacknowledged(t(), connection()) :: [delivery()]
  def unacknowledged(state, connection), do: state |> tree(connection) |> :gb_trees.values()

  @doc "Those of them up to this number."
  @spec through(t(), connection(), pos_integer()) :: [delivery()]
  def through(state, connection, number),
    do: state |> tree(connection) |> :gb_trees.iterator() |> take_through(number)

  defp take_through(iterator, last) do
    case :gb_trees.next(iterator) do
      {number, delivery, iterator} when number <= last ->
        [delivery | take_through(iterator, last)]

      _later_or_none ->
        []
    end
  end

  defp tree(state, connection), do: Map.get(state.unacknowledged, connection, :gb_trees.empty())

  @doc "The delivery with this number, or nil."
  @spec delivery(t(), connection(), pos_integer()) :: delivery() | nil
  def delivery(state, connection, number) do
    case :gb_trees.lookup(number, tree(state, connection)) do
      {:value, delivery} -> delivery
      :none -> nil
    end
  end

  @doc "These deliveries are over."
  @spec settle(t(), [delivery()]) :: t()
  def settle(state, deliveries) do
    state = Enum.reduce(deliveries, state, &done(release(&2, &1), &1.message))
    Enum.reduce(queues(deliveries), state, &dispatch(&2, &1))
  end

  @doc """
  The messages of these deliveries wait again, marked: with RabbitMQ where they were, with others before those that
  were not delivered yet.
  """
  @spec give_back(t(), [delivery()]) :: t()
  def give_back(state, deliveries) do
    state = Enum.reduce(deliveries, state, &again/2)
    Enum.reduce(queues(deliveries), state, &dispatch(&2, &1))
  end

  defp again(%{message: message} = delivery, state) do
    place = if state.like == :rabbitmq, do: message.place, else: {0, state.next}
    state = release(%{state | next: state.next + 1}, delivery)
    wait(state, %{message | redelivered: true, place: place})
  end

  @doc "Are all messages to `destination` acknowledged or refused? False if there was none."
  @spec settled?(t(), binary()) :: boolean()
  def settled?(state, destination),
    do: destination in state.settled and not is_map_key(state.open, destination)

  defp topic?(destination), do: String.starts_with?(destination, "/topic/")

  defp queues(deliveries), do: deliveries |> Enum.map(& &1.message.queue) |> Enum.uniq()

  # A topic's subscription that has ended has no queue any more: its messages are lost.
  defp wait(state, %{queue: queue, destination: destination})
       when is_tuple(queue) and not is_map_key(state.order, queue),
       do: gone(state, destination, 1)

  defp wait(state, %{queue: queue, place: place} = message) do
    waiting = Map.get(state.waiting, queue, :gb_trees.empty())
    put_in(state.waiting[queue], :gb_trees.insert(place, message, waiting))
  end

  # The queue of a topic's subscription.
  defp drop(state, queue, destination) do
    {waiting, rest} = Map.pop(state.waiting, queue, :gb_trees.empty())
    state = %{state | waiting: rest, order: Map.delete(state.order, queue)}
    lost = :gb_trees.size(waiting)
    if lost > 0, do: gone(state, destination, lost), else: state
  end

  defp release(state, %{number: number, subscription: {connection, _id} = key}) do
    state = update_in(state.unacknowledged[connection], &:gb_trees.delete(number, &1))

    if is_map_key(state.subscriptions, key),
      do: update_in(state.subscriptions[key].held, &(&1 - 1)) |> has_room(key),
      else: state
  end

  # RabbitMQ lets a subscription that had no room wait at the end.
  defp has_room(%{like: :rabbitmq} = state, key) do
    case state.subscriptions[key] do
      %{passed: true, queue: queue} ->
        state = put_in(state.subscriptions[key].passed, false)
        update_in(state.order[queue], &(List.delete(&1, key) ++ [key]))

      _never_full ->
        state
    end
  end

  defp has_room(state, _key), do: state

  defp done(state, %{destination: destination}) do
    state = gone(state, destination, 1)
    %{state | settled: MapSet.put(state.settled, destination)}
  end

  # So many messages to this destination are handled, or lost.
  defp gone(state, destination, count) do
    case state.open[destination] - count do
      0 -> %{state | open: Map.delete(state.open, destination)}
      left -> put_in(state.open[destination], left)
    end
  end

  # Gives what waits to the subscriptions in turn, as long as one has room.
  defp dispatch(state, queue) do
    waiting = Map.get(state.waiting, queue, :gb_trees.empty())
    if :gb_trees.is_empty(waiting), do: state, else: dispatch(state, queue, waiting)
  end

  defp dispatch(state, queue, waiting) do
    {full, free} = Enum.split_while(Map.get(state.order, queue, []), &(not room?(state, &1)))
    state = Enum.reduce(full, state, &put_in(&2.subscriptions[&1].passed, true))

    case free do
      [] ->
        state

      [key | others] ->
        {_place, message, waiting} = :gb_trees.take_smallest(waiting)
        state = put_waiting(state, queue, waiting)
        state = put_in(state.order[queue], full ++ others ++ [key])
        state |> deliver(key, message) |> dispatch(queue)
    end
  end

  # Nothing is kept of a queue that is empty.
  defp put_waiting(state, queue, waiting) do
    if :gb_trees.is_empty(waiting),
      do: %{state | waiting: Map.delete(state.waiting, queue)},
      else: put_in(state.waiting[queue], waiting)
  end

  defp room?(state, key) do
    %{held: held, prefetch: prefetch} = state.subscriptions[key]
    # A number is less than an atom.
    held < prefetch
  end

  defp deliver(state, {connection, _id} = key, message) do
    %{ack: ack, dead_letters: dead_letters} = state.subscriptions[key]

    delivery = %{
      number: state.next,
      subscription: key,
      message: message,
      ack: ack,
      dead_letters: dead_letters
    }

    state = %{state | next: state.next + 1, deliveries: [delivery | state.deliveries]}

    if ack == "auto" do
      gone(state, message.destination, 1)
    else
      tree = :gb_trees.insert(delivery.number, delivery, tree(state, connection))
      state = put_in(state.unacknowledged[connection], tree)
      update_in(state.subscriptions[key].held, &(&1 + 1))
    end
  end
end

defmodule Demo.Trains do
  @moduledoc """
  Invented trains, and messages about them like those of National Rail's Darwin: XML of 2 to 3 KB, compressed with
  gzip. All is made from a seed, so it is the same each time.
  """

  @trains 60
  @messages 1_200

  # Code, name, and minutes from the first station.
  @stations [
    {"ABBOTSW", "Abbots Wharf", 0},
    {"BRIDGEM", "Bridgemarket", 4},
    {"CASTLEH", "Castle Heath", 9},
    {"DENBURY", "Denbury Park", 13},
    {"EASTVAL", "Eastvale", 18},
    {"FERNHLT", "Fernholt", 24},
    {"GRANGEX", "Grange Cross", 29},
    {"HARTFLD", "Hartfield", 35},
    {"INGLEBY", "Ingleby", 41},
    {"JUNIPER", "Juniper Hill", 46},
    {"KINGSEY", "Kingsey", 52},
    {"LONGMOR", "Longmoor", 58},
    {"MILLBRK", "Millbrook Lane", 63},
    {"NORTHAM", "Northam Quay", 70}
  ]

  @names Map.new(@stations, fn {code, name, _minutes} -> {code, name} end)

  @doc "The name of a station."
  def name(code), do: Map.fetch!(@names, code)

  @doc "The messages: each is about one train, and one minute later than the last one about it."
  def messages do
    :rand.seed(:exsss, {1, 2, 3})
    trains = for number <- 1..@trains, do: train(number)

    for n <- 1..@messages do
      train = Enum.at(trains, rem(n, @trains))
      late = max(train.late + div(n, @trains) - 6, 0)
      :zlib.gzip(xml(train, late, n))
    end
  end

  defp train(number) do
    length = Enum.random(8..length(@stations))

    %{
      uid: "C#{10_000 + number * 7}",
      start: 12 * 60 + number * 2,
      stations: Enum.take(@stations, length),
      late: Enum.random([0, 0, 0, 1, 2, 4, 9]),
      platform: Enum.random(1..12)
    }
  end

  defp xml(train, late, number) do
    locations =
      for {code, _name, minutes} <- train.stations do
        planned = time(train.start + minutes)
        expected = time(train.start + minutes + late)

        """
              <fc:Location tpl="#{code}" wta="#{planned}" wtd="#{planned}" pta="#{planned}" ptd="#{planned}">
                <fc:arr et="#{expected}" src="Darwin"/><fc:dep et="#{expected}" src="Darwin"/>
                <fc:plat platsup="false" conf="true">#{train.platform}</fc:plat>
              </fc:Location>
        """
      end

    """
    <?xml version="1.0" encoding="UTF-8"?>
    <Pport xmlns="http://www.thalesgroup.com/rtti/PushPort/v16"
           xmlns:fc="http://www.thalesgroup.com/rtti/PushPort/Forecasts/v3" version="16.0">
      <uR updateOrigin="Demo" sequence="#{number}">
        <TS rid="20261129#{train.uid}" uid="#{train.uid}" ssd="2026-11-29">
    #{locations}    </TS>
      </uR>
    </Pport>
    """
  end

  defp time(minutes) do
    [div(minutes, 60) |> rem(24), rem(minutes, 60)]
    |> Enum.map_join(":", &String.pad_leading(to_string(&1), 2, "0"))
  end

  @doc "The train that a message is about."
  def uid(xml) do
    [_all, uid] = Regex.run(~r/uid="(\w+)"/, xml)
    uid
  end

  @doc "What a message says: `{uid, destination, planned, expected, platform}`, of the departure from the first station."
  def departure(xml) do
    uid = uid(xml)
    [_all, planned] = Regex.run(~r/ptd="(\d\d:\d\d)"/, xml)
    [_all, expected] = Regex.run(~r/<fc:dep et="(\d\d:\d\d)"/, xml)
    [_all, platform] = Regex.run(~r/conf="true">(\d+)</, xml)
    [last] = Regex.run(~r/.*tpl="(\w+)"/s, xml, capture: :all_but_first)
    {uid, name(last), planned, expected, platform}
  end
end

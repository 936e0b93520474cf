"""The list of words that GridMix's keys and values are made of: 1,000 words with a mean length of 9.66, as in Hadoop's.

From the King James Version, which is in the public domain: of the words of each length, written in small letters, the
most frequent ones (QUOTAS says how many; of equally frequent words the first in the alphabet), all in alphabetical
order.
"""

from __future__ import annotations

QUOTAS = {6: 30, 7: 100, 8: 170, 9: 190, 10: 195, 11: 140, 12: 95, 13: 50, 14: 20, 15: 10}
"""How many words there are of each length in letters."""

WORDS: tuple[bytes, ...] = tuple(
    b"""
abominable abomination abominations abundance abundantly acceptable accepted accompanied accomplish accomplished
accomplishing accomplishment according accounted accusation acknowledge acknowledged acknowledgement acknowledgeth
acknowledging acquaintance administered administrations admonished adulterers adulteress adulteresses adulteries
adultery adversaries adversary afflicted affliction afflictions affrighted afterward afterwards against altogether
ambassadors anointed anointing another answered answereth answering apostles apostleship apothecaries appearance
appeared appertaineth appointed appointment armourbearer ashamed assembled assemblies assembly astonished astonishment
astrologers atonement authority backsliding backslidings baptized beautiful because bedchamber before beforehand
beforetime beginning behold beholding believe believed believeth belongeth beloved beseech besought between birthright
bitterness blameless blasphemed blasphemeth blasphemies blasphemously blasphemy blemish blessed blessing bloodguiltiness
bottomless bountifully bountifulness branches breadth breastplate breastplates brethren bridechamber bridegroom
brightness brimstone bringeth brokenhearted brother brought broughtest building bullock bullocks burdensome buryingplace
business called candlestick candlesticks cankerworm captain captains captives captivity carefulness carpenters carried
caterpiller caterpillers centurion certain certainly chamberlain chamberlains chambers chapiters chargeable chariot
chariots chasteneth chastening chastisement cherubims children chronicles churches circumcise circumcised circumcising
circumcision circumspectly cities cleansed clothed clothes clovenfooted comeliness cometh comfortably comforted
comforters command commanded commandedst commandeth commandment commandments commendation committed committeth
communicate communicated communication communications companies companion companions company compassed compassion
comprehended conceived concerning concubine concubines concupiscence condemnation condemned confession confidence
confirmation confirmed confounded confusion congregation congregations conscience consecrate consecrated consecration
consecrations consider considered considereth considering consolation consolations conspiracy conspired constrained
constraineth consulted consumed consumption contemptible contention contentions contentious continual continually
continuance continue continued contradicting contradiction contrariwise controversies controversy convenient
conversation convocation convocations correction corrupted corruptible corruption counsel counsellor counsellors
countenance countenances countries country covenant covered covereth covering covetousness creature creatures creeping
crucified cubits curtains darkness daughter daughters deceitful deceitfully deceitfulness deceived declaration declare
declared dedicated dedication defiled delighted delighteth deliver deliverance delivered delivereth demonstration
departed departing descended descending desolate desolation desolations despised despiseth despitefully destroy
destroyed destroyeth destroying destruction destructions determination determined detestable devoured difference
diligently disappointeth disciple disciples discomfited discouraged discovered discretion dishonoureth dismayed
disobedience disobedient dispensation displeased displeasure dispossessed disquieted dissimulation distress distressed
distresses distributed distribution divided divination divisions divorcement doctrine dominion drunkenness dwelleth
dwelling dwellingplace dwellingplaces dwellings earnestly earthquake eastward edification eighteenth encamped
enchantments endureth enemies enlightened enquired entered entering establish established establisheth estimation
everlasting evermore evildoers exalted exceeding exceedingly excellency excellent exhortation expectation extortioners
eyewitnesses fainthearted faithful faithfully faithfulness falsehood families father fatherless fathers fellowlabourer
fellowlabourers fellowprisoner fellowservant fellowservants fellowship fellowsoldier fierceness fifteenth filthiness
finished firmament firstborn firstfruits firstling firstlings flattereth flattering followed followeth following
foolishly foolishness footstool forasmuch foreknowledge forgiven forgiveness forgotten fornication fornications forsaken
foundation foundations fountain fountains fourscore foursquare fourteen fourteenth frankincense fruitful fulfilled
furthermore garment garments gathered gathereth genealogies genealogy generation generations gladness glittering
glorified glorious godliness goodness governor governors gracious grapegatherers grasshoppers greater greatly greatness
grievous grievously grievousness guestchamber habitation habitations handmaid hardened haughtiness hearken hearkened
heathen heaven heavens heaviness henceforth henceforward heretofore heritage himself holiness honourable horsemen
hospitality household householder households hundred hundredfold hundreds husband husbandman husbandmen hypocrites
hypocritical ignorance imagination imaginations immediately immortality impossible impoverished imprisonment incense
incorruptible incorruption increase increased increaseth indignation infirmities inflammation inhabitant inhabitants
inhabited inheritance iniquities iniquity innocent innumerable instructed instruction instrument instruments
insurrection integrity intercession interpretation interpretations interpreted interpreter intreated jealousy journeyed
judgment judgments justification justified kindled kindness kingdom kingdoms kneadingtroughs knowest knoweth knowledge
lamentation lamentations language languisheth lasciviousness lieutenants lightning lightnings likeness likewise little
longsuffering magicians magistrates magnified maidservant maidservants maliciousness manifest manifestation manifested
manservant marvelled marvellous marvellously measure measured measures meditation memorial menservants merchandise
merchants merciful messenger messengers mighty minister ministered ministering ministers ministration miracles mischief
mischievous moneychangers moreover morning mother mountain mountains mourning multiplied multiply multitude multitudes
murmurings nakedness nations needlework neighbour neighbours neither nevertheless northward nothing notwithstanding
numbered obedience oblation obtained offended offered offering offerings officers oftentimes ointment opportunity
oppressed oppression oppressor oppressors ordained ordinance ordinances ornaments otherwise ourselves outstretched
overcometh overflowing overlaid overshadowed overthrow overthroweth overthrown overwhelmed partakers particularly
passover patience people peradventure perceived perfect perfection performed perished perpetual persecute persecuted
persecutest persecution persecutions persecutors persuaded pertained pertaineth pertaining perverseness pestilence
physicians pillars pitched places pleasant pleasure plenteousness polluted pomegranate pomegranates portion possess
possessed possession possessions praise preached preaching precious predestinated preparation prepare prepared presence
present presented preserve preserved preserveth presumptuously prevailed priest priesthood priests princes principal
principalities prisoners proceedeth proclaimed proclamation profitable promised pronounce pronounced prophesied
prophesieth prophesy prophesying prophet prophetess prophets propitiation prospered prosperity prosperous province
provinces provocation provocations provoked pruninghooks psalteries publicans punishment purification questions rebelled
rebellious receive received receiveth recompence recompense recompensed reconciled reconciliation redeemed redemption
regardeth reigned rejected rejoice rejoiced rejoiceth rejoicing remained remaineth remaining remember remembered
remembereth remembrance remnant removed repaired repentance repented replenished reproach reproached reproacheth
reproachfully restitution restored restrained resurrection return returned revealed revelation reverence righteous
righteously righteousness righteousnesses ringstraked sabbath sabbaths sackcloth sacrifice sacrificed sacrifices
sacrificeth salutation salvation sanctification sanctified sanctifieth sanctify sanctuaries sanctuary satisfied saying
scattered scattereth scribes scripture scriptures separate separated separation sepulchre sepulchres servant servants
service seventeenth seventh sheepshearers shekels shepherd shepherds shewbread should shoulder shoulderpieces shoulders
shouldest silver similitude slaughter smitten sojourneth soldiers soothsayers sorrowful southward speaketh speaking
spirit spiritual spoken spreadeth sprinkle sprinkled standeth standing statutes stedfastly stiffnecked storehouses
straight straightway straitened strange stranger strangers streets strength strengthen strengthened strengtheneth
strengthening stretched stretcheth strong stumblingblock stumblingstone subjection substance suburbs suddenly suffered
sufferings sufficient superscription supplication supplications swallowed synagogue synagogues tabernacle tabernacles
talebearer taskmasters tempestuous temple temptation temptations tenderhearted terrible terribleness testament testified
testimonies testimony thanksgiving thanksgivings themselves thenceforth therefore therein thereof thereon therewith
things thirteenth thither thought thoughts thousand thousands threescore threshingfloor threshingfloors threshold
through throughout thunderings thyself together toucheth touching toward transgress transgressed transgresseth
transgressing transgression transgressions transgressor transgressors travaileth treacherous treacherously treasure
treasures treasuries trembling trespass trespassed trespasses tribulation tribulations tributaries trouble troubled
trumpets turned turtledoves twentieth twenty unbelievers unbelieving uncircumcised uncircumcision unclean uncleanness
uncovered undersetters understand understandest understandeth understanding understood unfruitful unleavened
unprofitable unpunished unrighteous unrighteousness unsearchable upright uprightness utterly uttermost vengeance vessels
villages vinedressers vineyard vineyards violence visitation waters westward whatsoever wherefore wherein whereof
wheresoever whereunto wherewith whether whirlwind whither whithersoever whomsoever whoredoms whoremongers whosoever
wicked wickedness wilderness willingly winepress wisdom withholden without witness witnesses womenservants wonderful
workmanship worship worshipped worshippers worshippeth worshipping wouldest written wrongfully wrought yourselves
""".split()
)
